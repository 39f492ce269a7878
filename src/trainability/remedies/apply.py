"""`apply_(model, remedy)`: change a model in place, say what was changed, and be able to undo it."""

import weakref
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from trainability.errors import ArgumentError, ArgumentTypeError, StateError, UnsupportedModelError, check_flag
from trainability.introspect.hooks import settle
from trainability.introspect.run import RandomState, unwrap
from trainability.introspect.select import Where
from trainability.introspect.snapshot import Snapshot, Values
from trainability.introspect.torch_private import compiler_is_loaded
from trainability.remedies.changes import Change, Plan
from trainability.remedies.registry import Remedy
from trainability.remedies.shaping.check import Check

_SHOWN = 8  # reasons, in an error


@dataclass(eq=False)
class Report:
    """The changes that `apply_` made. ``undo()`` puts everything back, to the bit, until the report is dropped.

    Attributes:
        remedy: what was applied.
        changes: what was changed: path, before, after, why.
        skipped: what was left as it is, by path, and why.
        applied: False of a dry run, and after ``undo()``.
        notes: what the result depends on beside that.
        check: what DKS, TAT and EOC predict of every layer beside what was measured.
    """

    remedy: Remedy
    changes: tuple[Change, ...]
    skipped: dict[str, str]
    applied: bool
    notes: tuple[str, ...] = ()
    check: Check | None = None
    _before: "_Before | None" = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "remedy": self.remedy.to_dict(),
            "applied": self.applied,
            "changes": [asdict(change) for change in self.changes],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "check": None if self.check is None else self.check.to_dict(),
        }

    def undo(self) -> None:
        """Put the model back as it was before: its modules, the code that they run, and the values of its tensors."""
        if self._before is None:
            raise StateError(
                "there is nothing to undo: this was a dry run, or undo() has run already", code="nothing-to-undo"
            )
        live = [report for ref in _reports if (report := ref()) is not None and report._before is not None]
        for later in reversed(live[live.index(self) + 1 :]):
            if later._before and not self._before.modules().isdisjoint(later._before.modules()):
                raise StateError(f"{later.remedy} was applied after {self.remedy}; undo that first", code="undo-order")
        self._before.restore()
        settle(self._before.model)
        self._before = None
        self.applied = False
        _forget_compiled()

    def __str__(self) -> str:
        lines = [f"{self.remedy}: {len(self.changes)} changed" + ("" if self.applied else " (not applied)")]
        lines += [f"  {c.path or 'the model'}: {c.before} -> {c.after} ({c.why})" for c in self.changes]
        lines += [f"  skipped {path or 'the model'}: {reason}" for path, reason in self.skipped.items()]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [str(self.check)] if self.check is not None else []
        return "\n".join(lines)


# What was applied, in order; a report that is dropped is gone from here.
_reports: "list[weakref.ref[Report]]" = []


def _forget_compiled() -> None:
    """Let torch.compile look again: compiled code does not ask whether a module has other hooks or children now."""
    if compiler_is_loaded():
        torch.compiler.reset()


class _Before:
    """A model as it was, with the values of its tensors; the mode in which it is stays."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.structure = Snapshot(model)
        self._values = Values(self.structure.tensors)

    def restore(self) -> None:
        modes = [(module, module.training) for module in self.structure.modules]
        self.structure.restore()
        self._values.restore()
        for module, mode in modes:
            module.training = mode

    def modules(self) -> set[nn.Module]:
        """The modules that the model has now, and those that it had."""
        return {*self.model.modules(), *self.structure.modules}


def apply_(
    model: nn.Module,
    remedy: Remedy,
    *,
    inputs: Any = None,
    where: Where | None = None,
    dry_run: bool = False,
    check: bool = True,
) -> Report:
    """Apply a remedy to a model, in place.

    Args:
        model: any module; it keeps its class.
        remedy: what to do, such as ``Init("he")`` or ``TAT()``.
        inputs: a batch, as in `trainability.measure`, for remedies that have to see how the model runs.
        where: which layers (`trainability.select`); the default is every layer that the remedy is for.
        dry_run: report only.
        check: refuse DKS, TAT and EOC where the shaped model does not do what they predict: where the mean square of
            the signal in a layer, over draws of the weights, departs from the prediction by more than a factor of 1.5
            and 4 standard errors. Without it the report has the numbers.

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
    from trainability.lbe.module import LBE
    from trainability.remedies.lbe import LBELoss

    if isinstance(remedy, LBE) or (isinstance(remedy, type) and issubclass(remedy, LBE)):
        remedy = LBELoss()  # which says what to do instead
    if isinstance(remedy, type) and issubclass(remedy, Remedy):
        raise ArgumentTypeError(
            f"{remedy.__name__} is a class; make one: apply_(model, {remedy.__name__}())", code="wrong-type"
        )
    if not isinstance(remedy, Remedy):
        raise ArgumentTypeError(f"apply_ needs a remedy such as Init('he') or TAT(), not {remedy!r}", code="wrong-type")
    check_flag("dry_run", dry_run)
    check_flag("check", check)
    wrapper, model = model, unwrap(model)
    random_state = RandomState(model)
    try:
        report = _applied(wrapper, model, remedy, _planned(model, remedy, where, inputs, check), dry_run)
    except BaseException:
        random_state.restore()
        raise
    if dry_run:
        random_state.restore()
    else:
        _forget_compiled()
    return report


def _planned(model: nn.Module, remedy: Remedy, where: Where | None, inputs: Any, check: bool) -> Plan:
    """The plan of a remedy, or the refusal of one that changes nothing or not what it predicts."""
    plan = Plan(*remedy.plan(model, where, inputs))
    if check and plan.check is not None and (departure := plan.check.departure) is not None:
        raise UnsupportedModelError(
            departure.path,
            f"{remedy} would not do what it predicts there: over {plan.check.draws} draws of the weights the mean "
            f"square of the signal is {departure.measured_q:.4g}, and {departure.q:.4g} is predicted. Likely: "
            f"{departure.reason}. Change that, keep the weights with init=None, or apply it all the same with "
            "check=False, whose report has the numbers of every layer",
            code="prediction-departs",
        )
    if not plan.changes:
        reasons = [f"\n{path or 'the model'}: {reason}" for path, reason in plan.skipped.items()]
        reasons += [f"\n{note}" for note in plan.notes]
        more = f"\nand {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise ArgumentError(
            f"{remedy} found nothing to change in {type(model).__name__}{''.join(reasons[:_SHOWN])}{more}",
            code="nothing-to-change",
        )
    return plan


def _applied(wrapper: nn.Module, model: nn.Module, remedy: Remedy, plan: Plan, dry_run: bool) -> Report:
    """Make the planned changes, or none of them where one fails."""
    changes = tuple(change for change, _ in plan.changes)
    if dry_run:
        return Report(remedy, changes, plan.skipped, False, plan.notes, plan.check)
    known = {id(parameter) for parameter in model.parameters()}
    before = _Before(model)
    try:
        with torch.no_grad():
            for _, change in plan.changes:
                change()
        if isinstance(wrapper, nn.parallel.DistributedDataParallel) and not known >= set(map(id, model.parameters())):
            raise ArgumentError(
                f"{remedy} adds parameters, which a DistributedDataParallel around the model would not keep the same "
                "on all ranks; apply it first, and wrap the model then",
                code="adds-parameters",
            )
    except BaseException:
        before.restore()
        raise
    settle(model)
    report = Report(remedy, changes, plan.skipped, True, plan.notes, plan.check, before)
    _reports[:] = [ref for ref in _reports if ref() is not None] + [weakref.ref(report)]
    return report
