"""`apply_(model, remedy)`: change a model in place, say what was changed, and be able to undo it."""

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from trainability.errors import ArgumentError, ArgumentTypeError, StateError
from trainability.layers import Selection, Where, select
from trainability.observe import unwrap
from trainability.taps import settle

_SHOWN = 8  # reasons, in an error


@dataclass(frozen=True)
class Change:
    """One thing that a remedy changed."""

    path: str
    before: str
    after: str
    why: str


# Every change with the function that makes it; and what is skipped, with the reason.
Changes: TypeAlias = list[tuple[Change, Callable[[], None]]]
Plan: TypeAlias = tuple[Changes, dict[str, str]]


@runtime_checkable
class Remedy(Protocol):
    """A way to make a network trainable, as a frozen dataclass."""

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Decide on every change, and change nothing yet."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""


@dataclass
class Report:
    """What `apply_` changed and skipped. ``undo()`` puts everything back, to the bit, until the report is dropped."""

    remedy: Remedy
    changes: tuple[Change, ...]
    skipped: dict[str, str]
    applied: bool
    _before: "_Before | None" = field(default=None, repr=False)
    _model: nn.Module | None = field(default=None, repr=False)

    def undo(self) -> None:
        """Put the model back as it was before: its modules, the code that they run, and the weights."""
        if self._before is None:
            raise StateError("there is nothing to undo: this was a dry run, or undo() has run already")
        later = self._later()
        if later is not None:
            raise StateError(f"{later.remedy} was applied after {self.remedy}; undo that first")
        self._before.restore()
        self._before = None
        self.applied = False
        if self._model is not None:
            settle(self._model)
        _forget_compiled()

    def _later(self) -> "Report | None":
        """What was applied to the same model last, if it is not this."""
        if self._model is None:
            return None
        live = [report for ref in _reports.get(self._model, []) if (report := ref()) is not None and report.applied]
        return live[-1] if live and live[-1] is not self else None

    def __str__(self) -> str:
        lines = [f"{self.remedy}: {len(self.changes)} changed" + ("" if self.applied else " (not applied)")]
        lines += [f"  {c.path or 'the model'}: {c.before} -> {c.after} ({c.why})" for c in self.changes]
        lines += [f"  skipped {path or 'the model'}: {reason}" for path, reason in self.skipped.items()]
        return "\n".join(lines)


# What was applied to which model, in order; a report that is dropped is gone from here.
_reports: "WeakKeyDictionary[nn.Module, list[weakref.ref[Report]]]" = WeakKeyDictionary()


def _forget_compiled() -> None:
    """Let torch.compile look again: compiled code does not ask whether a module has other hooks or children now."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


class _Before:
    """A model's structure and the values of its parameters and buffers, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, type(module), dict(vars(module)), _inner(module)) for module in model.modules()]
        self.values = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]

    def restore(self) -> None:
        for module, kind, attributes, inner in self.modules:
            mode = module.training
            if type(module) is not kind:  # torch makes a class for a module whose weight is parametrised
                module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in inner.items():  # in place, since handles of hooks know these dictionaries
                attributes[name].clear()
                attributes[name].update(content)
            module.training = mode
        with torch.no_grad():
            for tensor, value in self.values:
                tensor.copy_(value)


def _inner(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """What a module keeps in dictionaries: parameters, buffers, children and hooks."""
    return {name: dict(value) for name, value in vars(module).items() if isinstance(value, dict)}


def apply_(
    model: nn.Module, remedy: Remedy, *, inputs: Any = None, where: Where | None = None, dry_run: bool = False
) -> Report:
    """Apply a remedy to a model, in place.

    Args:
        model: any module; it keeps its class.
        remedy: what to do, such as ``Init("he")`` or ``TAT()``.
        inputs: a batch, as in `trainability.measure`, for remedies that have to see how the model runs.
        where: which layers (`trainability.select`); the default is every layer that the remedy is for.
        dry_run: report only.

    Raises:
        ValueError: nothing matched, or the remedy needs ``inputs``.
        UnsupportedModelError: the model, or one module of it, is not one that the remedy can change.
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
        raise ArgumentTypeError(
            "LBE changes the loss and not the model, so apply_ has nothing to do; write lbe = LBE(model) and then "
            "loss = lbe(loss) in the training loop"
        )
    if isinstance(remedy, type) and issubclass(remedy, Remedy):
        raise ArgumentTypeError(f"{remedy.__name__} is a class; make one: apply_(model, {remedy.__name__}())")
    if not isinstance(remedy, Remedy):
        raise ArgumentTypeError(f"apply_ needs a remedy such as Init('he') or TAT(), not {remedy!r}")
    wrapper, model = model, unwrap(model)
    planned, skipped = remedy.plan(model, where, inputs)
    if not planned:
        reasons = [f"\n{path or 'the model'}: {reason}" for path, reason in skipped.items()]
        more = f"\nand {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise ArgumentError(
            f"{remedy} found nothing to change in {type(model).__name__}{''.join(reasons[:_SHOWN])}{more}"
        )
    changes = tuple(change for change, _ in planned)
    if dry_run:
        return Report(remedy, changes, skipped, applied=False)
    known = {id(parameter) for parameter in model.parameters()}
    report = Report(remedy, changes, skipped, True, _Before(model), model)
    _reports.setdefault(model, []).append(weakref.ref(report))
    try:
        with torch.no_grad():
            for _, change in planned:
                change()
        if isinstance(wrapper, nn.parallel.DistributedDataParallel) and not known >= set(map(id, model.parameters())):
            raise ArgumentError(
                f"{remedy} adds parameters, which a DistributedDataParallel around the model would not keep the same "
                "on all ranks; apply it first, and wrap the model then"
            )
    except BaseException:
        report.undo()
        raise
    settle(model)
    _forget_compiled()
    return report


def chosen(
    model: nn.Module, where: Where | None, fits: Callable[[nn.Module], bool], reason: str
) -> tuple[list[str], dict[str, str]]:
    """Paths that ``where`` selects and ``fits`` accepts, and the others of the selection with the reason."""
    if where is None:
        return [path for path, module in model.named_modules() if fits(module)], {}
    selection: Selection = select(model, where)
    fitting = [path for path in selection.modules if fits(model.get_submodule(path))]
    return fitting, {**selection.skipped, **{p: reason for p in selection.paths if p not in fitting}}
