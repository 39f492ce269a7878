"""Plans of remedies: changes of a model with the functions that make them, and what is left as it is and why."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import nn

from trainability.introspect.select import Selection, Where, select

if TYPE_CHECKING:
    from trainability.remedies.shaping.check import Check


@dataclass(frozen=True)
class Change:
    """One thing that a remedy changed."""

    path: str
    before: str
    after: str
    why: str


Changes: TypeAlias = list[tuple[Change, Callable[[], None]]]


class Plan(NamedTuple):
    """The changes that a remedy is going to make to a model.

    Attributes:
        changes: every change with the function that makes it.
        skipped: what is left as it is, by path, and why.
        notes: what the result depends on beside that.
        check: what the planned model does, for a remedy that predicts it.
    """

    changes: Changes
    skipped: dict[str, str]
    notes: tuple[str, ...] = ()
    check: "Check | None" = None


def chosen(
    model: nn.Module, where: Where | None, fits: Callable[[nn.Module], bool], reason: str
) -> tuple[list[str], dict[str, str]]:
    """Paths that ``where`` selects and ``fits`` accepts, and the others of the selection with the reason."""
    if where is None:
        return [path for path, module in model.named_modules() if fits(module)], {}
    selection: Selection = select(model, where)
    fitting = [path for path in selection.modules if fits(model.get_submodule(path))]
    return fitting, {**selection.skipped, **{p: reason for p in selection.paths if p not in fitting}}


def chosen_weight_layers(
    model: nn.Module, where: Where | None, layers: dict[str, nn.Module], skipped: dict[str, str]
) -> set[str]:
    """Paths of the weight layers that ``where`` selects, by default all; what else it selects is noted as skipped."""
    if where is None:
        return set(layers)
    wanted = select(model, where).paths
    skipped |= {path: "not a weight layer" for path in wanted if path not in layers and path not in skipped}
    return layers.keys() & set(wanted)


def nested_tensor_changes(model: nn.Module) -> Changes:
    """Keep transformer encoders from packing sequences of several lengths, which what is put into them cannot take."""
    return [
        (
            Change(path, "packs padded sequences", "keeps them padded", "new layers take no nested tensors"),
            partial(setattr, module, "use_nested_tensor", False),
        )
        for path, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor
    ]
