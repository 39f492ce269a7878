"""Shortcuts around the layers of an existing model, plain or with a scale."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from types import CodeType
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, UnsupportedModelError, check_choice, check_whole
from trainability.introspect.activations import is_nonlinearity
from trainability.introspect.dataflow import (
    Calls,
    check_free,
    first_tensor,
    watch_calls,
    weight_layers,
)
from trainability.introspect.norms import NORMS
from trainability.introspect.select import Where, select
from trainability.introspect.torch_private import DropoutNd, RunningNorm
from trainability.introspect.weight_layers import is_weight_layer, matrices
from trainability.nn.shortcut import Add, Scale, ScaledAdd, fixup_factors, shortcut
from trainability.remedies.apply import Change, Changes, Plan, nested_tensor_changes
from trainability.remedies.weights import fill, weight_std

_BETWEEN = (*NORMS, DropoutNd, nn.Identity)


@dataclass(frozen=True)
class Residual:
    """Give layers shortcuts: x + s · f(x) in the place of f(x).

    Where an `nn.Sequential` holds weight layers and nonlinearities in turn, f is ``layers`` of these pairs whose input
    and output have one shape. With ``where`` f is each module that is chosen. Modules keep their names; the first
    weight layer of f gets a child ``shortcut``.

    Args:
        scale: ``"identity"``: s is 1. ``"rezero"``: s is learned, and 0 at first. ``"skipinit"``: s is learned, and
            1 / √(number of branches) at first; 0, which its authors allow, is ``"rezero"``. ``"fixup"``: s is learned,
            and 1 at first; f ends with its last weight layer, whose weights begin at 0; its other weights are those of
            He, times (number of branches)^(-1 / (2m - 2)) for the m weight layers of f; those outside of branches
            are He's, and the last of the model begins at 0. Biases begin at 0 and stay what they are, one per neuron.
        layers: how many weight layers make an f.

    Raises:
        ValueError: without ``inputs``, from which the shapes are read.

    Reference: He et al. (2016); De and Smith (2020), section 4; Bachlechner et al. (2021), section 3; Zhang, Dauphin
    and Ma (2019), section 3.

    >>> from trainability import apply_
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> report = apply_(model, Residual("rezero"), inputs=torch.randn(2, 4))
    >>> print(report)
    Residual(scale='rezero', layers=1): 1 changed
      2 to 3: f(x) -> x + 0 · f(x), the scale learned (a shortcut around 1 weight layer)
      skipped 0 to 1: it maps (2, 4) to (2, 8), and a shortcut needs one shape
    """

    scale: Scale = "identity"
    layers: int = 1

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, get_args(Scale))
        check_whole("layers", self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "residual", **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan one change per branch, and for Fixup one per weight layer."""
        if inputs is None:
            raise ArgumentError(
                "Residual reads the shapes of layers off one call: apply_(model, remedy, inputs=x)",
                code="inputs-needed",
            )
        calls = watch_calls(model, inputs)
        weight_layers(model, calls)  # refuses quantized ones
        spans, skipped = self._spans(model, calls) if where is None else _modules(model, calls, where)
        changes: Changes = []
        if self.scale == "fixup":
            for path, module in model.named_modules():
                if isinstance(module, RunningNorm):
                    skipped[path] = f"{type(module).__name__} stays, though Fixup is for networks without"
        if self.scale == "fixup" and spans:
            changes += _fixup_weights(model, calls, spans)
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
                    "a shortcut begins at its first weight layer already; choose modules apart",
                    code="modules-overlap",
                )
            holders.add(holder)
            added = shortcut(self.scale, len(spans)).to(next(model.parameters()))
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
        return [*changes, *nested_tensor_changes(model)] if changes else changes, skipped

    def _spans(self, model: nn.Module, calls: Calls) -> tuple[list["_Span"], dict[str, str]]:
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
            for begin, last, end in _layers_of(module, ends_with_weights=self.scale == "fixup", together=self.layers):
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
            some = "" if self.layers == 1 else f"{self.layers} times "
            skipped[""] = (
                f"no nn.Sequential holds a weight layer and a nonlinearity {some}in turn; name the modules that are to "
                "have a shortcut with where="
            )
        return spans, skipped


@dataclass(frozen=True)
class _Span:
    """What gets a shortcut: modules of a Sequential from one place to another, or one module."""

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
    """Why there can be no shortcut from the input of one module to the output of another."""
    if first not in calls.shapes or last not in calls.shapes:
        return "it did not run on these inputs"
    before, after = calls.shapes[first][0], calls.shapes[last][1]
    if not after:
        return "it returns something else than a tensor"
    return None if before == after else f"it maps {before} to {after}, and a shortcut needs one shape"


def _layers_of(module: nn.Module, *, ends_with_weights: bool, together: int) -> list[tuple[int, int, int]]:
    """Where layers of a Sequential begin, have their last weight layer, and end.

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


def _fixup_weights(model: nn.Module, calls: Calls, spans: list[_Span]) -> Changes:
    found, _ = weight_layers(model, calls)
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
                path, "its weights cannot be set; they are parametrized, or of an unknown kind", code="parametrized"
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
        """What the tracing of torch asks of a ``forward``."""
        return type(self).__call__.__code__

    def __deepcopy__(self, memo: dict[int, Any]) -> "ShortcutForward":
        return ShortcutForward(memo.get(id(self.module), self.module), dict(self.spans))
