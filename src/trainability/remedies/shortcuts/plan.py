"""Shortcuts around the layers of an existing model, plain or with a scale."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, UnsupportedModelError
from trainability.introspect.activations import is_nonlinearity
from trainability.introspect.dataflow import Calls, check_free, first_tensor, watch_calls, weight_layers
from trainability.introspect.norms import NORMS
from trainability.introspect.select import Where, select
from trainability.introspect.torch_private import DropoutNd, RunningNorm
from trainability.introspect.weight_layers import is_weight_layer, matrices
from trainability.nn.shortcut import Add, ScaledAdd, fixup_factors, shortcut
from trainability.remedies.changes import Change, Changes, Plan, nested_tensor_changes
from trainability.remedies.initialization.weights import fill, weight_std
from trainability.remedies.shortcuts import Residual

_BETWEEN = (*NORMS, DropoutNd, nn.Identity)


def plan(remedy: Residual, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """Plan one change per branch, and for Fixup one per weight layer."""
    if inputs is None:
        raise ArgumentError(
            "Residual reads the shapes of layers off one call: apply_(model, remedy, inputs=x)",
            code="inputs-needed",
        )
    calls = watch_calls(model, inputs)
    layers, _ = weight_layers(model, calls)
    spans, skipped = _spans(remedy, model, calls) if where is None else _modules(model, calls, where)
    changes: Changes = []
    if remedy.scale == "fixup":
        for path, module in model.named_modules():
            if isinstance(module, RunningNorm):
                skipped[path] = f"{type(module).__name__} stays, though Fixup is for networks without"
        if spans:
            changes += _fixup_weights(model, layers, spans)
    by_owner: dict[nn.Module, list[tuple[int, int]]] = {}
    holders: set[nn.Module] = set()
    for span in spans:
        begin = model.get_submodule(span.paths[0])
        inside = _weight_layer_in(begin)
        holder = begin.get_submodule(inside)
        check_free(f"{span.paths[0]}.{inside}".strip("."), holder, "shortcut")
        if holder in holders:
            raise UnsupportedModelError(
                span.paths[0],
                "a shortcut begins at its first weight layer already; choose modules that do not overlap",
                code="modules-overlap",
            )
        holders.add(holder)
        added = shortcut(remedy.scale, len(spans)).to(next(model.parameters()))
        count = sum(len(_weights(model.get_submodule(p))) for p in span.paths)
        what = "x + f(x)" if isinstance(added, Add) else f"x + {_shown(added.scale)} · f(x), the scale learned"
        path = " to ".join(dict.fromkeys((span.paths[0], span.paths[-1])))
        change = Change(path, "f(x)", what, f"a shortcut around {count} weight layer{'s' if count != 1 else ''}")
        if span.sequential is None:
            changes.append((change, partial(_put_around, begin, inside, added)))
        else:
            owner = model.get_submodule(span.sequential)
            by_owner.setdefault(owner, []).append(span.place)
            changes.append((change, partial(holder.add_module, "shortcut", added)))
    if by_owner:
        last, make = changes[-1]
        changes[-1] = (last, partial(_with_forwards, make, by_owner))
    return Plan([*changes, *nested_tensor_changes(model)] if changes else changes, skipped)


def _spans(remedy: Residual, model: nn.Module, calls: Calls) -> tuple[list["_Span"], dict[str, str]]:
    """Runs of layers within the Sequentials of a model whose input and output have one shape."""
    spans: list[_Span] = []
    skipped: dict[str, str] = {}
    for path, module in model.named_modules():
        if type(module).forward is not nn.Sequential.forward:
            continue
        if path not in calls.ran:
            skipped[path] = "it did not run itself: something else calls what is in it; name modules with where="
            continue
        if "forward" in vars(module):
            skipped[path] = "its forward has been replaced already; undo that first"
            continue
        free = 0  # the first place that no span has taken
        for begin, last, end in _layers_of(module, ends_with_weights=remedy.scale == "fixup", together=remedy.layers):
            names = list(module._modules)[begin : end + 1]
            paths = tuple(f"{path}.{name}".lstrip(".") for name in names)
            if begin < free:
                continue
            # Activations keep the shape; one that is in several places has only one path.
            if reason := _not_alike(calls, paths[0], paths[last - begin]):
                skipped[" to ".join(dict.fromkeys((paths[0], paths[-1])))] = reason
            else:
                spans.append(_Span(paths, path, (begin, end)))
                free = end + 1
    if not spans and not skipped:
        some = "" if remedy.layers == 1 else f"{remedy.layers} times "
        skipped[""] = (
            f"no nn.Sequential holds a weight layer and a nonlinearity {some}in turn; name the modules that are to "
            "have a shortcut with where="
        )
    return spans, skipped


@dataclass(frozen=True)
class _Span:
    """A branch that gets a shortcut: modules of a Sequential from one place to another, or one module."""

    paths: tuple[str, ...]
    sequential: str | None = None
    place: tuple[int, int] = (0, 0)


def _shown(scale: Tensor) -> str:
    return "scale" if scale.is_meta else f"{float(scale.detach()):.3g}"


def _modules(model: nn.Module, calls: Calls, where: Where) -> tuple[list[_Span], dict[str, str]]:
    selection = select(model, where)
    spans: list[_Span] = []
    skipped = dict(selection.skipped)
    for path in selection.paths:
        if reason := _not_alike(calls, path, path):
            skipped[path] = reason
        elif not _weights(model.get_submodule(path)):
            skipped[path] = "it has no weight layer"
        elif path in calls.overwrites:
            skipped[path] = "it changes its input in place, which a shortcut would add; use inplace=False in it"
        else:
            spans.append(_Span((path,)))
    return spans, skipped


def _not_alike(calls: Calls, first: str, last: str) -> str | None:
    """The reason why no shortcut can lead from the input of one module to the output of another, if any."""
    if first not in calls.shapes or last not in calls.shapes:
        return "it did not run on these inputs"
    before, after = calls.shapes[first][0], calls.shapes[last][1]
    if not after:
        return "it returns something else than a tensor"
    return None if before == after else f"it maps {before} to {after}, and a shortcut needs one shape"


def _layers_of(module: nn.Module, *, ends_with_weights: bool, together: int) -> list[tuple[int, int, int]]:
    """Places where layers of a Sequential begin, have their last weight layer, and end.

    A layer is a weight layer, what normalizes or drops, and a nonlinearity.
    """
    children = [child for child in module._modules.values() if child is not None]  # not children(): some come twice
    single: list[tuple[int, int, int]] = []  # begin, last weight layer, end
    for begin, child in enumerate(children):
        if not is_weight_layer(child):
            continue
        end = begin + 1
        while end < len(children) and isinstance(children[end], _BETWEEN):
            end += 1
        if end < len(children) and is_nonlinearity(children[end]):
            single.append((begin, begin, end))
    found = []
    for start in range(0, len(single) - together + 1):
        group = single[start : start + together]
        if all(a[2] + 1 == b[0] for a, b in pairwise(group)):
            found.append((group[0][0], group[-1][1], group[-1][1] if ends_with_weights else group[-1][2]))
    return found


def _weights(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if is_weight_layer(m)]


def _fixup_weights(model: nn.Module, found: dict[str, nn.Module], spans: list[_Span]) -> Changes:
    place = {module: number for number, module in enumerate(found.values())}  # in the order in which they run
    branches = [
        sorted((m for p in span.paths for m in _weights(model.get_submodule(p)) if m in place), key=place.__getitem__)
        for span in spans
    ]
    factors = fixup_factors(list(found.values()), branches)
    changes: Changes = []
    for path, module in found.items():
        weight = module._parameters.get("weight")
        if matrices(module) is None or weight is None:
            raise UnsupportedModelError(
                path,
                "its weights cannot be set, since they are parametrized or of an unknown kind; use another scale",
                code="parametrized",
            )
        factor = factors[module]
        words = "0" if factor == 0 else f"He, times {factor:.3g}"
        change = Change(path, weight_std(weight), words, "Fixup")
        changes.append((change, partial(_he, module, factor)))
    return changes


def _he(module: nn.Module, factor: float) -> None:
    fill(module, lambda out, into: torch.randn(out, into) * (factor * (2 / into) ** 0.5))


def _weight_layer_in(module: nn.Module) -> str:
    """Path of the first weight layer in a module, which takes the shortcut as a child: a Sequential would run it."""
    return next((path for path, inner in module.named_modules() if is_weight_layer(inner)), "")


def _put_around(module: nn.Module, holder: str, added: nn.Module) -> None:
    module.get_submodule(holder).add_module("shortcut", added)
    module.register_forward_hook(partial(_with_shortcut, holder=holder), with_kwargs=True)


def _with_shortcut(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor, *, holder: str
) -> Tensor:
    """Add the input of a module to its output."""
    x = first_tensor(args, kwargs)
    total: Tensor = cast(Add | ScaledAdd, module.get_submodule(holder).shortcut)(x, output)
    return total


def _with_forwards(before: Callable[[], None], owners: dict[nn.Module, list[tuple[int, int]]]) -> None:
    before()
    for owner, places in owners.items():
        owner.forward = ShortcutForward(owner, dict(places))


class ShortcutForward:
    """The ``forward`` of a Sequential in which runs of modules have shortcuts. It stands in the instance."""

    def __init__(self, module: nn.Module, spans: dict[int, int]) -> None:
        self.module = module
        self.spans = spans

    def __call__(self, input: Tensor) -> Tensor:
        """Run the modules in turn."""
        x = kept = input
        begin = -1
        children = [child for child in self.module._modules.values() if child is not None]
        for number, module in enumerate(children):
            if number in self.spans:
                begin, kept = number, x
            x = module(x)
            if self.spans.get(begin) == number:
                x = cast(Add | ScaledAdd, children[begin].shortcut)(kept, x)
        return x

    @property
    def __code__(self) -> CodeType:
        """The code object, which the tracing of torch asks of a ``forward``."""
        return type(self).__call__.__code__

    def __deepcopy__(self, memo: dict[int, Any]) -> "ShortcutForward":
        return ShortcutForward(memo.get(id(self.module), self.module), dict(self.spans))
