"""Elementwise activations in double precision: the function, its derivatives, and the points where they jump."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainability.errors import ArgumentError
from trainability.introspect.activation_table import ALIASES, TABLE
from trainability.introspect.activations import MODULES
from trainability.signal.kinks import find_kinks

Function: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """An elementwise function φ.

    Attributes:
        name: as in torch.nn.functional.
        function: φ on float64 tensors.
        kinks: where φ or one of its first two derivatives jumps.
        resolution: the length over which φ is smooth between kinks.
        leaky: ``(slope, gain)`` where φ(z) = gain · max(z, slope z), whose kernel maps have closed forms.
    """

    name: str
    function: Function
    kinks: tuple[float, ...] = ()
    resolution: float = 1.0
    leaky: tuple[float, float] | None = None

    def derivatives(self, z: Tensor, order: int) -> tuple[Tensor, ...]:
        """φ(z), φ'(z), ... up to the order asked for, by automatic differentiation; zero where there is none."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            values = [self.function(z)]
            for k in range(order):
                last = values[-1]
                slope = None
                if last.requires_grad:
                    (slope,) = torch.autograd.grad(last.sum(), z, create_graph=k < order - 1, allow_unused=True)
                values.append(torch.zeros_like(z) if slope is None else slope)
        return tuple(value.detach() for value in values)

    def jumps(self, order: int) -> bool:
        """True where the derivative of that order (0: φ itself) jumps at one of the kinks."""
        if not self.kinks:
            return False
        z = torch.tensor(self.kinks, dtype=torch.float64, device="cpu")
        small = 1e-7 * (1 + z.abs())
        left, right = (self.derivatives(side, order)[order] for side in (z - small, z + small))
        return bool(((left - right).abs() > 1e-4 * (1 + left.abs())).any())

    def shaped(self, constants: dict[str, float]) -> "Activation":
        """output_scale · (φ(input_scale · z + input_shift) + output_shift), or of the leaky ReLU with a new slope."""
        a, b = constants.get("input_scale", 1.0), constants.get("input_shift", 0.0)
        shift, gain = constants.get("output_shift", 0.0), constants.get("output_scale", 1.0)
        inner = self
        if "negative_slope" in constants:
            inner = leaky_relu(constants["negative_slope"])
        closed = inner.leaky is not None and not b and not shift and a > 0
        return Activation(
            f"shaped {self.name}",
            lambda z: gain * (inner.function(a * z + b) + shift),
            tuple((k - b) / a for k in inner.kinks),
            inner.resolution / abs(a),
            (inner.leaky[0], inner.leaky[1] * gain * a) if closed and inner.leaky else None,
        )


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """The leaky ReLU max(z, slope z)."""
    return Activation(
        "leaky_relu" if negative_slope else "relu",
        lambda z: torch.where(z > 0, z, negative_slope * z),
        (0.0,),
        leaky=(negative_slope, 1.0),
    )


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
# The named functions in the form in which float64 has them and two derivatives exactly; others are torch's.
_FORMS: dict[str, Function] = {
    "bentid": lambda z: z + ((z * z + 1).sqrt() - 1) / 2,
    "celu": lambda z: torch.where(z > 0, z, torch.expm1(z.clamp(max=0))),
    "elu": lambda z: torch.where(z > 0, z, torch.expm1(z.clamp(max=0))),
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardsigmoid": lambda z: (z / 6 + 0.5).clamp(0, 1),
    "hardswish": lambda z: z * (z / 6 + 0.5).clamp(0, 1),
    "hardtanh": lambda z: z.clamp(-1, 1),
    "identity": lambda z: z * 1.0,
    "logsigmoid": lambda z: -torch.logaddexp(-z, torch.zeros_like(z)),
    "mish": lambda z: z * torch.tanh(torch.logaddexp(z, torch.zeros_like(z))),
    "relu6": lambda z: z.clamp(0, 6),
    "selu": lambda z: _SELU_SCALE * torch.where(z > 0, z, _SELU_ALPHA * torch.expm1(z.clamp(max=0))),
    "softplus": lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    "softsign": lambda z: z / (1 + torch.where(z > 0, z, -z)),
}


def names() -> tuple[str, ...]:
    """Every activation that is known by name."""
    return tuple(sorted([*(name for name, row in TABLE.items() if row.kinks is not None), *ALIASES]))


def as_activation(phi: Any, name: str = "") -> Activation:
    """Return the activation that a name, a module, or any elementwise function on tensors stands for.

    What is not known by name is put to the test: that it is elementwise, deterministic, finite and differentiable;
    and the points where it or its derivatives jump are found by bisection.

    Raises:
        ValueError: it is none of these things, or there is no activation of that name.

    >>> as_activation("swish").name
    'silu'
    >>> as_activation(lambda z: torch.tanh(z - 1).relu()).kinks
    (1.0,)
    """
    if isinstance(phi, Activation):
        return phi
    if isinstance(phi, str):
        return _by_name(phi)
    if isinstance(phi, nn.LeakyReLU):
        return leaky_relu(phi.negative_slope)
    if isinstance(phi, nn.GELU):
        return _by_name("gelu_tanh" if phi.approximate == "tanh" else "gelu")
    known = MODULES.get(type(phi))
    if known is not None and known.kinks is not None and _has_default_settings(phi):
        return _by_name(known.name)
    if isinstance(phi, nn.RReLU):
        raise ArgumentError(
            "rrelu draws its slope at random in training, so it is not a fixed function; use leaky_relu", code="random"
        )
    if not callable(phi):
        raise ArgumentError(
            f"an activation is a name, a module or an elementwise function, not {phi!r}", code="activation"
        )
    if isinstance(phi, nn.Module):
        name = name or type(phi).__name__
        phi = copy.deepcopy(phi).double().eval()
        for parameter in phi.parameters():
            parameter.requires_grad_(False)
    name = name or getattr(phi, "__name__", type(phi).__name__)
    _check(phi, name)
    kinks, resolution = find_kinks(Activation(name, phi).derivatives)
    leaky = _slopes(phi) if kinks == (0.0,) else None
    if leaky is not None and leaky[1] == 1:
        name = "leaky_relu" if leaky[0] else "relu"
    return Activation(name, phi, kinks, resolution, leaky)


def _slopes(phi: Function) -> tuple[float, float] | None:
    """``leaky`` of a function that is a leaky ReLU, whatever it is called: b z above 0, a z with a / b ≥ 0 below."""
    z = torch.logspace(-3, 2, 16, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        above, below = phi(z.clone()) / z, phi(-z) / -z
    gain, other = float(above[-1]), float(below[-1])
    straight = torch.allclose(above, above[-1:], rtol=1e-9) and torch.allclose(below, below[-1:], rtol=1e-9)
    return (
        (abs(other) / gain, gain) if straight and gain > 0 and other >= 0 and abs(float(phi(0 * z)[0])) == 0 else None
    )


def _by_name(name: str) -> Activation:
    name = ALIASES.get(name, name)
    if name == "leaky_relu":
        return leaky_relu()
    if name == "relu":
        return leaky_relu(0.0)
    row = TABLE.get(name)
    if row is None or row.kinks is None:
        raise ArgumentError(
            f"there is no activation {name!r}; choose from {', '.join(names())}, or pass the function",
            code="unknown-activation",
        )
    return Activation(name, _FORMS.get(name) or getattr(torch, name, None) or getattr(F, name), row.kinks)


def _has_default_settings(module: nn.Module) -> bool:
    like = type(module)()
    settings = [k for k in vars(like) if not k.startswith("_") and k not in ("training", "inplace")]
    return all(getattr(module, k) == getattr(like, k) for k in settings)


def _check(function: Function, name: str) -> None:
    z = torch.linspace(-3.1, 3.2, 24, dtype=torch.float64, device="cpu").view(4, 6)
    try:
        with torch.no_grad():
            once, again = function(z.clone()), function(z.clone())
    except Exception as error:
        raise ArgumentError(
            f"{name} cannot be called on a float64 tensor: {type(error).__name__}: {error}", code="activation-fails"
        ) from error
    if not isinstance(once, Tensor) or once.shape != z.shape or once.dtype != torch.float64:
        what = f"shape {tuple(once.shape)}, {once.dtype}" if isinstance(once, Tensor) else type(once).__name__
        raise ArgumentError(
            f"{name} is not elementwise: a float64 tensor of shape (4, 6) became {what}", code="not-elementwise"
        )
    if not once.isfinite().all():
        raise ArgumentError(f"{name} is not finite at {float(z[~once.isfinite()][0]):.3g}", code="not-finite")
    if not torch.equal(once, again):
        raise ArgumentError(
            f"{name} gives a different value at every call; the maps need a fixed function (eval mode?)",
            code="random",
        )
    order = torch.randperm(24, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    with torch.no_grad():
        some = order[:14]  # others in their company, and fewer
        mixed = function(z.flatten()[some].view(2, 7).clone())
    if not torch.allclose(mixed.flatten(), once.flatten()[some], rtol=1e-10, atol=1e-12):
        raise ArgumentError(
            f"{name} is not elementwise: one value depends on other values of the same tensor", code="not-elementwise"
        )
    slope = Activation(name, function).derivatives(z, 1)[1]
    if not slope.isfinite().all():
        raise ArgumentError(
            f"the derivative of {name} is not finite at {float(z[~slope.isfinite()][0]):.3g}", code="not-finite"
        )
    if math.isclose(float(once.std()), 0.0, abs_tol=1e-300):
        raise ArgumentError(f"{name} is constant", code="constant")
