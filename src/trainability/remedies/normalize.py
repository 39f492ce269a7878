"""Normalization of what the weight layers of an existing model return, or of their weights."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainability.errors import ArgumentError, UnsupportedModelError, check_choice, check_whole
from trainability.introspect.dataflow import (
    Calls,
    check_free,
    watch_calls,
    weight_layers,
)
from trainability.introspect.norms import NORMS
from trainability.introspect.select import Where, select
from trainability.introspect.weight_layers import weight_layout
from trainability.nn.norms import FeatureBatchNorm, FeatureGroupNorm
from trainability.remedies.apply import Change, Changes, Plan, nested_tensor_changes

Kind = Literal["batch", "layer", "weight", "group"]


@dataclass(frozen=True)
class Normalize:
    """Normalize after each weight layer but the last, and so before each nonlinearity of a plain network.

    Each weight layer gets a child ``norm`` through which its outputs go; its own parameters keep their names. Under
    ``"weight"`` the weight is written as length times direction instead (`torch.nn.utils.parametrize`).

    Args:
        kind: ``"batch"``: over the batch, each feature by itself. ``"layer"``: over the features of a sample, and of a
            token; of maps over channels and positions. ``"group"``: the same within groups of channels.
            ``"weight"``: the length of each neuron's weight is learned apart from its direction.
        groups: of ``"group"``; by default as many as leave 16 features to each, or the nearest that divides them.

    A layer that a normalization follows already is left alone. With ``inputs`` the order is that of one call; without,
    that of definition.

    Reference: Ioffe and Szegedy (2015); Ba, Kiros and Hinton (2016); Salimans and Kingma (2016); Wu and He (2018).

    >>> from trainability import apply_
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> [change.after for change in apply_(model, Normalize("group")).changes]
    ['FeatureGroupNorm(2, 32)', 'FeatureGroupNorm(2, 32)']
    """

    kind: Kind = "batch"
    groups: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(Kind))
        if self.groups is None:
            return
        check_whole("groups", self.groups)
        if self.kind != "group":
            raise ArgumentError(f"groups belongs to kind 'group', not to {self.kind!r}", code="does-not-apply")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "normalize", **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan one change per weight layer."""
        calls = watch_calls(model, inputs)
        layers, skipped = weight_layers(model, calls)
        if where is None:
            last = _last(calls, layers)
            skipped |= dict.fromkeys(last, "it gives the output of the model")
        else:
            wanted = select(model, where).paths
            skipped |= {path: "not a weight layer" for path in wanted if path not in layers and path not in skipped}
            last = layers.keys() - set(wanted)
        changes: Changes = []
        for path, module in layers.items():
            if path in last:
                continue
            if self.kind == "weight":
                changes.append(_weight_norm(model, path, module))
            elif (follower := _norm_after(model, calls, path)) is not None:
                skipped[path] = f"{follower} normalizes it already"
            else:
                check_free(path, module, "norm")
                norm, what = self._norm(path, module)
                change = Change(f"{path}.norm", "nothing", what, f"after {type(module).__name__}")
                changes.append((change, partial(_put_after, module, norm)))
        return [*changes, *nested_tensor_changes(model)] if changes else changes, skipped

    def _norm(self, path: str, module: nn.Module) -> tuple[nn.Module, str]:
        layout = weight_layout(module)
        assert layout is not None
        features, maps = layout.outputs, bool(layout.kernel)
        norm: nn.Module
        if self.kind == "batch":
            norm = FeatureBatchNorm(features, last=not maps, place=f"after {path}")
            what = f"FeatureBatchNorm({features})"
        elif self.kind == "layer" and not maps:
            norm, what = nn.LayerNorm(features), f"LayerNorm({features})"
        else:
            groups = 1 if self.kind == "layer" else self.groups or features // math.gcd(features, 16)
            if features % groups or (not maps and groups == features > 1):
                raise UnsupportedModelError(
                    path,
                    f"its {features} features do not make {groups} groups"
                    + (" of two or more, and one by itself would always be 0" if features == groups else ""),
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
        raise UnsupportedModelError(path, "its weight is parametrized already", code="parametrized")
    weight = module._parameters.get("weight")
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is weight and weight is not None]
    others = [name for name in names if model.get_submodule(name.rpartition(".")[0]) is not module]
    if weight is None or others:
        raise UnsupportedModelError(
            path,
            f"its weight is also {others[0]}, and a parametrized one would no longer be; leave it out with where="
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
            f"{empty} of its neurons have weights of 0, as Fixup begins with, and so no direction; initialize them",
            code="weights-zero",
        )
    change = Change(path, "weight", "length × direction", "weight normalization, one length per neuron")
    return change, partial(_parametrize, module, layout.output_axis)


def _parametrize(module: nn.Module, outputs: int) -> None:
    mode = module.training
    parametrize.register_parametrization(module, "weight", WeightNorm(outputs))
    module.train(mode)
