"""Initializations of the weights."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainability.errors import ArgumentError, UnsupportedModelError, check_choice
from trainability.introspect.dataflow import unfit
from trainability.introspect.run import call, observing
from trainability.introspect.select import Where
from trainability.introspect.weight_layers import fan_in, is_weight_layer, matrices
from trainability.remedies.apply import Change, Changes, Plan, chosen
from trainability.remedies.weights import (
    check_delta,
    fill,
    fill_delta,
    scaled_uniform_orthogonal,
    uniform_orthogonal,
    weight_std,
)
from trainability.signal import maps

Scheme = Literal["he", "default", "lecun", "orthogonal", "delta-orthogonal", "suo", "lsuv"]
_SCHEMES = ("default", "he", "lecun", "orthogonal", "delta-orthogonal", "suo", "lsuv")
_GAUSSIAN = {"he": 2.0, "lecun": 1.0}  # variance times fan-in
_DELTA = ("delta-orthogonal", "suo")


@dataclass(frozen=True)
class Init:
    """Initialize every weight layer anew.

    ``"default"``: what PyTorch does when a layer is made, uniform weights of variance 1 / (3 fan-in) and uniform
    biases, under which a ReLU network loses a factor 0.41 of its signal per layer. All others set biases to zero.

    ``"he"``: Gaussian weights of variance 2 / fan-in, which keeps the mean square of a ReLU network's signal.

    ``"lecun"``: Gaussian weights of variance 1 / fan-in, which is what SELU needs.

    ``"orthogonal"``: orthonormal rows or columns times the gain at which ``nonlinearity`` is critical,
    1 / √E φ'² (√2 for ReLU); a kernel counts as further inputs. ``"delta-orthogonal"``: the same matrix at the
    central tap of a convolution and zeros at the others.

    ``"suo"``: orthogonal times max(√(outputs / inputs), 1), at the central tap: what shaped activations need.

    ``"lsuv"``: orthonormal, and then each layer in turn scaled so that its outputs have variance 1 on ``inputs``.

    Reference: He et al. (2015), eq. 10; LeCun et al. (1998), section 4.6; Saxe et al. (2014); Xiao et al. (2018),
    algorithm 1; Martens et al. (2021); Mishkin and Matas (2016), algorithm 1.
    """

    scheme: Scheme = "he"
    nonlinearity: str = "relu"

    def __post_init__(self) -> None:
        check_choice("scheme", self.scheme, _SCHEMES)
        self._gain()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "init", **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan one change per weight layer."""
        if self.scheme == "lsuv" and inputs is None:
            raise ArgumentError(
                "Init('lsuv') scales each layer's outputs on a batch: apply_(model, remedy, inputs=x)",
                code="inputs-needed",
            )
        if self.scheme == "lsuv" and any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise UnsupportedModelError(
                "", "it is on the meta device and has no values, by which lsuv scales its weights", code="no-values"
            )
        paths, skipped = chosen(model, where, is_weight_layer, "not a weight layer")
        owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        planned: Changes = []
        for path in paths:
            module = model.get_submodule(path)
            reason = self._obstacle(model, path, owners)
            if reason is not None:
                skipped[path] = reason
                continue
            weight = module._parameters["weight"]
            assert weight is not None
            before = weight_std(weight)
            after, make = self._change(path, module)
            planned.append((Change(path, before, after, self._why(module)), make))
        if self.scheme == "lsuv" and planned:
            scaled = [change.path for change, _ in planned]
            note = Change("", "outputs of any variance", "variance 1 on the batch", "lsuv, in the order of execution")
            planned.append((note, partial(_unit_variance, model, inputs, scaled)))
        known = {*(change.path for change, _ in planned), *skipped}
        for path, module in model.named_modules():
            matrix = any(p.dim() >= 2 for p in module._parameters.values() if p is not None)
            if where is None and path not in known and matrix:
                skipped[path] = f"{type(module).__name__} has weights of another kind"
        return planned, skipped

    def _obstacle(self, model: nn.Module, path: str, owners: dict[int, list[str]]) -> str | None:
        module = model.get_submodule(path)
        weight = module._parameters.get("weight")
        shared = [name for name in owners.get(id(weight), []) if name.rpartition(".")[0] != path]
        aliases = [name for name in shared if model.get_submodule(name.rpartition(".")[0]) is not module]
        known = fan_in(module) if self.scheme in ("he", "lecun", "default") else matrices(module)
        if parametrize.is_parametrized(module, "weight"):
            return "its weight is parametrized; initialize it before that"
        if weight is None or known is None:
            return f"{type(module).__name__}: its fan-in cannot be read off its weight"
        if reason := unfit(module):
            return reason
        if aliases:
            return f"its weight is also {aliases[0]}"
        if self.scheme == "default" and not hasattr(module, "reset_parameters"):
            return f"{type(module).__name__} has no reset_parameters()"
        return None

    def _gain(self) -> float:
        return 1 / math.sqrt(maps.c_slope(self.nonlinearity) * maps.q_map(self.nonlinearity))

    def _why(self, module: nn.Module) -> str:
        inputs = fan_in(module)
        return self.scheme if inputs is None else f"{self.scheme}, fan-in {inputs}"

    def _change(self, path: str, module: nn.Module) -> tuple[str, Callable[[], None]]:
        """What the weights become, in words, and the function that sets them."""
        inputs = fan_in(module) or 1
        if self.scheme == "default":
            return f"std {math.sqrt(1 / (3 * inputs)):.3g}", cast(Callable[[], None], module.reset_parameters)
        if self.scheme in _GAUSSIAN:
            std = math.sqrt(_GAUSSIAN[self.scheme] / inputs)
            return f"std {std:.3g}", partial(fill, module, lambda out, into: torch.randn(out, into) * std)
        if self.scheme in _DELTA:
            check_delta(path, module)
        if self.scheme == "suo":
            return "orthogonal, scaled to keep the mean square", partial(fill_delta, module, scaled_uniform_orthogonal)
        gain = 1.0 if self.scheme == "lsuv" else self._gain()
        make = fill_delta if self.scheme == "delta-orthogonal" else fill
        return f"orthogonal, gain {gain:.3g}", partial(make, module, partial(uniform_orthogonal, gain=gain))


def _unit_variance(model: nn.Module, inputs: Any, paths: list[str]) -> None:
    """Scale the weights of each layer to outputs of variance 1 in a single pass.

    Biases are zero, so dividing an output as it leaves its layer is the same as dividing the weights, which is done
    after the pass: within it, whatever changes is put back.
    """
    spreads: dict[str, Tensor] = {}
    handles = []

    def scale(path: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            if path not in spreads:
                spreads[path] = std = output.std(correction=0)
                if not (std.isfinite() and std > 0):
                    raise ArgumentError(
                        f"lsuv: the outputs of {path} have a standard deviation of {float(std)} on this batch",
                        code="no-spread",
                    )
            return output / spreads[path]

        return hook

    try:
        for path in paths:
            handles.append(model.get_submodule(path).register_forward_hook(scale(path)))
        with observing(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for path, spread in spreads.items():
        weight = model.get_submodule(path)._parameters["weight"]
        assert weight is not None
        weight.div_(spread)
