"""Initializations of the weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainability.errors import ArgumentError, UnsupportedModelError
from trainability.introspect.dataflow import unfit
from trainability.introspect.run import call, observing
from trainability.introspect.select import Where
from trainability.introspect.weight_layers import fan_in, is_weight_layer, matrices
from trainability.remedies.changes import Change, Changes, Plan, chosen
from trainability.remedies.initialization import Init
from trainability.remedies.initialization.weights import (
    check_delta,
    fill,
    fill_delta,
    scaled_uniform_orthogonal,
    uniform_orthogonal,
    weight_std,
)
from trainability.signal import maps

_GAUSSIAN = {"he": 2.0, "lecun": 1.0}  # variance times fan-in
_DELTA = ("delta-orthogonal", "suo")


def plan(remedy: Init, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """Plan one change per weight layer."""
    if remedy.scheme == "lsuv" and inputs is None:
        raise ArgumentError(
            "Init('lsuv') scales each layer's outputs on a batch: apply_(model, remedy, inputs=x)",
            code="inputs-needed",
        )
    if remedy.scheme == "lsuv" and any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "", "it is on the meta device and has no values by which lsuv could scale its weights", code="no-values"
        )
    paths, skipped = chosen(model, where, is_weight_layer, "not a weight layer")
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    planned: Changes = []
    for path in paths:
        module = model.get_submodule(path)
        reason = _obstacle(remedy, model, path, owners)
        if reason is not None:
            skipped[path] = reason
            continue
        weight = module._parameters["weight"]
        assert weight is not None
        before = weight_std(weight)
        after, make = _change(remedy, path, module)
        planned.append((Change(path, before, after, _why(remedy, module)), make))
    if remedy.scheme == "lsuv" and planned:
        scaled = [change.path for change, _ in planned]
        note = Change("", "outputs of any variance", "variance 1 on the batch", "lsuv, in the order of execution")
        planned.append((note, partial(_unit_variance, model, inputs, scaled)))
    known = {*(change.path for change, _ in planned), *skipped}
    for path, module in model.named_modules():
        matrix = any(p.dim() >= 2 for p in module._parameters.values() if p is not None)
        if where is None and path not in known and matrix:
            skipped[path] = f"{type(module).__name__} has weights of another kind"
    return Plan(planned, skipped)


def _obstacle(remedy: Init, model: nn.Module, path: str, owners: dict[int, list[str]]) -> str | None:
    module = model.get_submodule(path)
    weight = module._parameters.get("weight")
    shared = [name for name in owners.get(id(weight), []) if name.rpartition(".")[0] != path]
    aliases = [name for name in shared if model.get_submodule(name.rpartition(".")[0]) is not module]
    known = fan_in(module) if remedy.scheme in ("he", "lecun", "default") else matrices(module)
    if parametrize.is_parametrized(module, "weight"):
        return "its weight is parametrized; initialize it before that"
    if weight is None or known is None:
        return f"{type(module).__name__}: its fan-in cannot be read off its weight"
    if reason := unfit(module):
        return reason
    if aliases:
        return f"its weight is also {aliases[0]}"
    if remedy.scheme == "default" and not hasattr(module, "reset_parameters"):
        return f"{type(module).__name__} has no reset_parameters()"
    return None


def gain(nonlinearity: str) -> float:
    """The gain of orthogonal weights at which a nonlinearity is critical, 1 / √E φ'²; an unknown one is refused."""
    return 1 / math.sqrt(maps.c_slope(nonlinearity) * maps.q_map(nonlinearity))


def _why(remedy: Init, module: nn.Module) -> str:
    inputs = fan_in(module)
    return remedy.scheme if inputs is None else f"{remedy.scheme}, fan-in {inputs}"


def _change(remedy: Init, path: str, module: nn.Module) -> tuple[str, Callable[[], None]]:
    """The new weights in words, and the function that sets them."""
    inputs = fan_in(module) or 1
    if remedy.scheme == "default":
        return f"std {math.sqrt(1 / (3 * inputs)):.3g}", cast(Callable[[], None], module.reset_parameters)
    if remedy.scheme in _GAUSSIAN:
        std = math.sqrt(_GAUSSIAN[remedy.scheme] / inputs)
        return f"std {std:.3g}", partial(fill, module, lambda out, into: torch.randn(out, into) * std)
    if remedy.scheme in _DELTA:
        check_delta(path, module)
    if remedy.scheme == "suo":
        return "orthogonal, scaled to keep the mean square", partial(fill_delta, module, scaled_uniform_orthogonal)
    factor = 1.0 if remedy.scheme == "lsuv" else gain(remedy.nonlinearity)
    make = fill_delta if remedy.scheme == "delta-orthogonal" else fill
    return f"orthogonal, gain {factor:.3g}", partial(make, module, partial(uniform_orthogonal, gain=factor))


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
                        f"lsuv: the outputs of {path} have a standard deviation of {float(std)} on this batch; pass "
                        "inputs that differ",
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
