"""Normalization of what the weight layers of an existing model return, or of their weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainability.errors import UnsupportedModelError
from trainability.introspect.dataflow import Calls, check_free, watch_calls, weight_layers
from trainability.introspect.norms import NORMS
from trainability.introspect.select import Where
from trainability.introspect.weight_layers import weight_layout
from trainability.nn.norms import FeatureBatchNorm, FeatureGroupNorm
from trainability.remedies.changes import Change, Changes, Plan, chosen_weight_layers, nested_tensor_changes
from trainability.remedies.normalization import Normalize


def plan(remedy: Normalize, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """Plan one change per weight layer."""
    calls = watch_calls(model, inputs)
    layers, skipped = weight_layers(model, calls)
    wanted = chosen_weight_layers(model, where, layers, skipped)
    if where is None:
        last = _last(calls, layers)
        skipped |= dict.fromkeys(last, "it gives the output of the model")
        wanted -= last
    changes: Changes = []
    for path, module in layers.items():
        if path not in wanted:
            continue
        if remedy.kind == "weight":
            changes.append(_weight_norm(model, path, module))
        elif (follower := _norm_after(model, calls, path)) is not None:
            skipped[path] = f"{follower} normalizes it already"
        else:
            check_free(path, module, "norm")
            norm, what = _norm(remedy, path, module)
            change = Change(f"{path}.norm", "nothing", what, f"after {type(module).__name__}")
            changes.append((change, partial(_put_after, module, norm)))
    return Plan([*changes, *nested_tensor_changes(model)] if changes else changes, skipped)


def _norm(remedy: Normalize, path: str, module: nn.Module) -> tuple[nn.Module, str]:
    layout = weight_layout(module)
    assert layout is not None
    features, maps = layout.outputs, bool(layout.kernel)
    norm: nn.Module
    if remedy.kind == "batch":
        norm = FeatureBatchNorm(features, last=not maps, place=f"after {path}")
        what = f"FeatureBatchNorm({features})"
    elif remedy.kind == "layer" and not maps:
        norm, what = nn.LayerNorm(features), f"LayerNorm({features})"
    else:
        groups = 1 if remedy.kind == "layer" else remedy.groups or features // math.gcd(features, 16)
        if features % groups or (not maps and groups == features > 1):
            raise UnsupportedModelError(
                path,
                f"its {features} features cannot be divided into {groups} groups"
                + (" of two or more, and one by itself would always be 0" if features == groups else "")
                + "; choose another number with groups=",
                code="groups",
            )
        norm = nn.GroupNorm(groups, features) if maps else FeatureGroupNorm(groups, features)
        what = f"{type(norm).__name__}({groups}, {features})"
    like = next(module.parameters())
    return norm.to(like.device, like.dtype).train(module.training), what


class WeightNorm(nn.Module):
    """A weight as length times direction, one length per neuron, for `torch.nn.utils.parametrize`.

    It is what `torch.nn.utils.parametrizations.weight_norm` computes, of operations that `torch.vmap` knows.

    >>> layer = nn.Linear(4, 3)
    >>> parametrize.register_parametrization(layer, "weight", WeightNorm(0)).parametrizations.weight.original0.shape
    torch.Size([3, 1])
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs  # the dimension of the neurons

    def forward(self, length: Tensor, direction: Tensor) -> Tensor:
        """Return the weight."""
        return direction * (length / self._length(direction))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Take a weight apart."""
        return self._length(weight), weight

    def _length(self, weight: Tensor) -> Tensor:
        others = [d for d in range(weight.dim()) if d != self.outputs]
        length: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        return length


def _last(calls: Calls, layers: dict[str, nn.Module]) -> set[str]:
    """The weight layers after which no other comes."""
    if calls.feeds is None:
        return set(list(layers)[-1:])
    between = calls.feeds.keys() - layers.keys()
    return {path for path in layers if not calls.behind(path, between) & layers.keys()}


def _norm_after(model: nn.Module, calls: Calls, path: str) -> str | None:
    """A normalization that takes what a layer returns."""
    after = [p for p, maker in calls.fed_by.items() if maker == path]
    return next((p for p in after if isinstance(model.get_submodule(p), NORMS)), None)


def _put_after(module: nn.Module, norm: nn.Module) -> None:
    module.add_module("norm", norm)
    module.register_forward_hook(_through_norm)


def _through_norm(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """Send the output of a weight layer through its normalization."""
    normalized: Tensor = cast(nn.Module, module.norm)(output)
    return normalized


def _weight_norm(model: nn.Module, path: str, module: nn.Module) -> tuple[Change, Callable[[], None]]:
    if parametrize.is_parametrized(module, "weight"):
        raise UnsupportedModelError(
            path,
            "its weight is parametrized already; remove that first, or leave it out with where=",
            code="parametrized",
        )
    weight = module._parameters.get("weight")
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is weight and weight is not None]
    others = [name for name in names if model.get_submodule(name.rpartition(".")[0]) is not module]
    if weight is None or others:
        raise UnsupportedModelError(
            path,
            f"it shares its weight with {others[0]}, and would not once it is parametrized; leave it out with where="
            if others
            else "it has no weight of its own",
            code="weights-shared" if others else "no-weight",
        )
    layout = weight_layout(module)
    assert layout is not None
    if layout.axes == "io" and layout.groups > 1:
        raise UnsupportedModelError(
            path,
            "the neurons of a grouped transposed convolution share rows of its weight; leave it out with where=",
            code="layer-kind",
        )
    empty = int((WeightNorm(layout.output_axis)._length(weight.detach()) == 0).sum()) if not weight.is_meta else 0
    if empty:
        raise UnsupportedModelError(
            path,
            f"{empty} of its neurons have weights of 0, as Fixup sets them, and so no direction; initialize them first",
            code="weights-zero",
        )
    change = Change(path, "weight", "length × direction", "weight normalization, one length per neuron")
    return change, partial(_parametrize, module, layout.output_axis)


def _parametrize(module: nn.Module, outputs: int) -> None:
    mode = module.training
    parametrize.register_parametrization(module, "weight", WeightNorm(outputs))
    module.train(mode)
