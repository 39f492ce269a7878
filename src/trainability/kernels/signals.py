"""Values on their way through a recorded model: a node of the graph, and a function of it that waits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from trainability.kernels.activation import Activation, as_activation, names
from trainability.kernels.operations import LINEAR, NAMED


@dataclass(frozen=True)
class Signal:
    """A node of the graph, or a function of its values taken element by element that waits for what comes next.

    ``linear`` is (a, b) while that function is a z + b. ``after`` is (a, b) of what comes after a function that is not,
    where another module does it. ``key`` tells functions apart.
    """

    node: int
    function: Callable[[Tensor], Tensor] | None = None
    linear: tuple[float, float] | None = (1.0, 0.0)
    key: tuple[Any, ...] = ()
    path: str | None = None
    shaped: Activation | None = None
    after: tuple[float, float] = (1.0, 0.0)

    def __call__(self, z: Tensor) -> Tensor:
        """The values for values ``z`` of the node."""
        value = z if self.function is None else self.function(z)
        return value if self.after == (1.0, 0.0) else self.after[0] * value + self.after[1]


def recognised(key: tuple[Any, ...], module: nn.Module) -> Activation | None:
    """The activation of a single operation whose closed form or exact function is known."""
    if type(module).__module__ == nn.modules.activation.__name__:
        return as_activation(module)
    name, (first, *rest), keywords = key[0], key[1], dict(key[2])
    if first != "z" or (rest != [] and name not in ("leaky_relu", "gelu", "elu")):
        return None
    if name == "leaky_relu":
        slope = rest[0] if rest else 0.01
        return as_activation(nn.LeakyReLU(float(slope)))
    if name == "gelu":
        return as_activation("gelu_tanh" if keywords.get("approximate") == "tanh" else "gelu")
    if name == "elu":
        return as_activation("elu") if not rest or rest == [1.0] else None
    return as_activation(name) if name in NAMED and name in names() and not keywords else None


def without_factor(signal: Signal) -> tuple[Signal, float]:
    """A signal without the factor that it was multiplied by last, and that factor."""
    factor, offset = signal.linear or signal.after
    if offset:
        return signal, 1.0
    bare = Signal(signal.node) if signal.linear is not None else replace(signal, after=(1.0, 0.0))
    return bare, factor


def as_identity(value: Any) -> Any:
    """A signal as if it were the source of what comes next."""
    return replace(value, linear=(1.0, 0.0)) if isinstance(value, Signal) else value


def linear_of(name: str, args: Any, kwargs: Any) -> tuple[float, float] | None:
    """(a, b) of an operation that is a z + b for the source z of its signals."""
    unknown = any(isinstance(value, Signal) and value.linear is None for value in args)
    if name not in LINEAR or unknown or kwargs.get("rounding_mode"):
        return None
    lines: list[tuple[float, float]] = []
    for value in args[:2]:
        plain = value.detach() if isinstance(value, Tensor) else value
        line = value.linear if isinstance(value, Signal) else (0.0, float(plain))
        assert line is not None
        lines.append(line)
    if name == "neg":
        return -lines[0][0], -lines[0][1]
    (a, b), (c, d) = lines
    if name in ("add", "sub", "rsub"):
        alpha = float(kwargs.get("alpha", 1))
        if name == "rsub":
            (a, b), (c, d) = (c, d), (a, b)
        sign = alpha if name == "add" else -alpha
        return a + sign * c, b + sign * d
    if name == "mul" and (a == 0 or c == 0):
        return a * d + b * c, b * d
    if name == "div" and c == 0:
        return a / d, b / d
    return None


def keyed(value: Any) -> Any:
    """A hashable form of arguments, in which the source of a signal is "z"."""
    if isinstance(value, Signal):
        return (value.key, value.after) if value.function is not None else "z"
    if isinstance(value, list | tuple):
        return tuple(keyed(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, keyed(item)) for key, item in sorted(value.items()))
    return float(value.detach()) if isinstance(value, Tensor) and value.numel() == 1 else value
