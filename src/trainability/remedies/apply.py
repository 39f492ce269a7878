"""`apply_(model, remedy)`: change a model in place, say what was changed, and be able to undo it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from trainability.layers import Selection, Where, select
from trainability.observe import unwrap


@dataclass(frozen=True)
class Change:
    """One thing that a remedy changed."""

    path: str
    before: str
    after: str
    why: str


@runtime_checkable
class Remedy(Protocol):
    """A way to make a network trainable, as a frozen dataclass."""

    def plan(
        self, model: nn.Module, where: Where | None
    ) -> tuple[list[tuple[Change, Callable[[], None]]], dict[str, str]]:
        """Every change with the function that makes it, and what is skipped with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""


@dataclass
class Report:
    """What `apply_` changed and skipped. ``undo()`` puts everything back, to the bit, until the report is dropped."""

    remedy: Remedy
    changes: tuple[Change, ...]
    skipped: dict[str, str]
    applied: bool
    _before: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _model: nn.Module | None = field(default=None, repr=False)

    def undo(self) -> None:
        """Put the model back as it was before."""
        if self._model is None:
            raise RuntimeError("there is nothing to undo: this was a dry run, or undo() has run already")
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in self._before:
                    parameter.copy_(self._before[name])
        self._model = None
        self._before.clear()
        self.applied = False

    def __str__(self) -> str:
        lines = [f"{self.remedy}: {len(self.changes)} changed" + ("" if self.applied else " (not applied)")]
        lines += [f"  {c.path}: {c.before} -> {c.after} ({c.why})" for c in self.changes]
        lines += [f"  skipped {path}: {reason}" for path, reason in self.skipped.items()]
        return "\n".join(lines)


def apply_(model: nn.Module, remedy: Remedy, *, where: Where | None = None, dry_run: bool = False) -> Report:
    """Apply a remedy to a model, in place.

    Args:
        model: any module; it keeps its class and its keys.
        remedy: what to do, such as ``Init("he")``.
        where: which layers (`trainability.select`); the default is every layer that the remedy is for.
        dry_run: report only.

    Raises:
        ValueError: nothing matched.
        TypeError: ``remedy`` is not a remedy. LBE changes the loss and not the model, and is refused here.

    >>> import torch
    >>> from torch import nn
    >>> from trainability import Init
    >>> model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 2))
    >>> report = apply_(model, Init("he"))
    >>> [change.path for change in report.changes]
    ['0', '2']
    >>> report.undo()
    """
    from trainability.lbe import LBE

    if isinstance(remedy, LBE) or (isinstance(remedy, type) and issubclass(remedy, LBE)):
        raise TypeError(
            "LBE changes the loss and not the model, so apply_ has nothing to do; write lbe = LBE(model) and then "
            "loss = lbe(loss) in the training loop"
        )
    if isinstance(remedy, type) or not isinstance(remedy, Remedy):
        raise TypeError(f"apply_ needs a remedy such as Init('he'), not {remedy!r}")
    model = unwrap(model)
    planned, skipped = remedy.plan(model, where)
    if not planned:
        reasons = "".join(f"\n{path}: {reason}" for path, reason in skipped.items())
        raise ValueError(f"{remedy} found nothing to change in {type(model).__name__}{reasons}")
    changes = tuple(change for change, _ in planned)
    if dry_run:
        return Report(remedy, changes, skipped, applied=False)
    touched = {id(p) for change in changes for p in model.get_submodule(change.path).parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) in touched}
    report = Report(remedy, changes, skipped, applied=True, _before=before, _model=model)
    try:
        with torch.no_grad():
            for _, change in planned:
                change()
    except BaseException:
        report.undo()
        raise
    return report


def chosen(
    model: nn.Module, where: Where | None, fits: Callable[[nn.Module], bool], reason: str
) -> tuple[list[str], dict[str, str]]:
    """Paths that ``where`` selects and ``fits`` accepts, and the others of the selection with the reason."""
    if where is None:
        return [path for path, module in model.named_modules() if fits(module)], {}
    selection: Selection = select(model, where)
    fitting = [path for path in selection.paths if fits(model.get_submodule(path))]
    return fitting, {**selection.skipped, **{p: reason for p in selection.paths if p not in fitting}}
