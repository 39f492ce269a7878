"""A task: a loss for every sample, metrics with a direction, and the form in which their values are shown."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from trainability.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PerSample = Callable[[Any, "Tensor"], "Tensor"]
"""Outputs and targets ``(N, ...)`` to a number for each sample, ``(N,)``."""
Detail = Literal["exact", "brief", "rough"]


@dataclass(frozen=True)
class Loss:
    """The loss of every sample, whose mean is minimized, with its name, its symbol in formulas, and its unit."""

    of: PerSample
    name: str
    symbol: str
    unit: str = ""


@dataclass(frozen=True)
class Metric:
    """A number that tells how well outputs meet their targets.

    Args:
        name: as in ``test_accuracy``.
        direction: ``"max"`` where more is better, ``"min"`` where less is.
        of: its part for every sample; the metric is their mean, times ``scale``.
        worst: what a run counts that diverged.
        scale: 100 for percent.
        unit: written behind a value.
        difference: the unit of a difference.
        forms: format specifications of a value that is told exactly, in brief and roughly.
        resolution: values no further apart are told as one.
        limits: of the axis in figures.
    """

    name: str
    direction: Literal["max", "min"]
    of: PerSample
    worst: float
    scale: float = 1.0
    unit: str = ""
    difference: str = ""
    forms: tuple[str, str, str] = (".4g", ".3g", ".2g")
    resolution: float = 0.0
    limits: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """Name and unit, as for an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def best(self, entries: Iterable[T], key: Callable[[T], float]) -> T:
        """The entry of the best value, which ``key`` tells of each."""
        return max(entries, key=key) if self.direction == "max" else min(entries, key=key)

    def exceeds(self, value: float, other: float, margin: float = 0.0) -> bool:
        """Return whether a value is better than another one by at least a margin."""
        return value >= other + margin if self.direction == "max" else value <= other - margin

    def number(self, value: float, detail: Detail = "exact", sign: str = "") -> str:
        """A value without its unit; ``sign="+"`` writes the sign of a positive one, too."""
        return format(value, sign + self.forms[("exact", "brief", "rough").index(detail)])

    def show(self, value: float, detail: Detail = "exact") -> str:
        """A value with its unit.

        >>> Metric("accuracy", "max", ..., 0.0, unit="%", forms=(".2f", ".1f", ".0f")).show(97.216, "brief")
        '97.2 %'
        """
        return f"{self.number(value, detail)} {self.unit}".rstrip()

    def gap(self, value: float, detail: Detail = "brief", sign: str = "") -> str:
        """A difference of two values with its unit."""
        return f"{self.number(value, detail, sign)} {self.difference}".rstrip()


@dataclass(frozen=True)
class Chance:
    """The main metric of the best answer that does not look at the input.

    Args:
        of: that of the targets ``(N, ...)`` of a data set.
        answer: in words, such as "always naming one class".
        label: in figures, such as "one class".
        margin: how much better than it a network is that has learned something.
    """

    of: Callable[["Tensor"], float]
    answer: str
    label: str
    margin: float


def prediction_of(outputs: Any) -> "Tensor":
    """The tensor by which the outputs of a model are scored: its logits by name, or else its first real tensor.

    Raises:
        UnsupportedModelError: there is none.

    >>> import torch
    >>> prediction_of({"loss": torch.zeros(2), "logits": torch.ones(2)})
    tensor([1., 1.])
    """
    from torch import Tensor

    from trainability.introspect.hooks import activation_of

    if isinstance(outputs, Tensor):  # the usual case, kept short
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    found = named if isinstance(named, Tensor) else activation_of(outputs)
    if found is None:
        raise UnsupportedModelError(
            "",
            f"it returns {type(outputs).__name__} without a tensor of real numbers; return one that a loss can score",
            code="outputs-not-a-tensor",
        )
    return found


@dataclass(frozen=True)
class Task:
    """The loss and the metrics by which the outputs of a model are scored.

    Args:
        name: of the task.
        loss: what is trained on.
        metrics: at least one; the first is the main one, by which the best is chosen and plateaus are seen.
        chance: what the main metric is without learning, where that is known.
        reads: what the loss and the metrics are given of a model's outputs.
    """

    name: str
    loss: Loss
    metrics: tuple[Metric, ...]
    chance: Chance | None = None
    reads: Callable[[Any], Any] = prediction_of

    @property
    def metric(self) -> Metric:
        """The main metric."""
        return self.metrics[0]

    def losses(self, outputs: Any, targets: "Tensor") -> "Tensor":
        """Mean loss of each member of a stack, ``(E,)``, from its outputs and targets ``(E, B, ...)``."""
        return self._each(self.loss.of, outputs, targets).mean(1)

    def totals(self, outputs: Any, targets: "Tensor") -> "Tensor":
        """Sum of each metric over the samples of each member, ``(metrics, E)``; the targets are ``(E, B, ...)``."""
        import torch

        found = [self._each(metric.of, outputs, targets) for metric in self.metrics]
        return torch.stack([each.to(torch.promote_types(each.dtype, torch.float32)).sum(1) for each in found])

    def _each(self, score: PerSample, outputs: Any, targets: "Tensor") -> "Tensor":
        """A number for every sample of every member, ``(E, B)``: the members' samples are scored as if of one."""
        from trainability.introspect.outputs import map_tensors

        members = targets.shape[:2]
        flat = map_tensors(lambda t: t.flatten(0, 1) if t.shape[:2] == members else t, self.reads(outputs))
        return score(flat, targets.flatten(0, 1)).view(members)
