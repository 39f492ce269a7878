"""Metrics: numbers that tell how well outputs meet their targets, and the forms in which they are shown."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PerSample = Callable[[Any, Any], "Tensor | tuple[Tensor, Tensor]"]
"""Outputs and targets of N samples to a number for each, ``(N,)``; or to sums and counts, ``(N,)`` each, where a
sample holds several things that are scored, such as tokens: the mean is then that of all the things."""
Detail = Literal["exact", "brief", "rough"]


class Meter(Protocol):
    """A metric as it is gathered over the batches of a data set, for one network."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch."""

    def compute(self) -> float:
        """The metric of all batches."""


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
        meter: in place of ``of``, for a metric that is no mean over samples: makes what gathers it.
    """

    name: str
    direction: Literal["max", "min"]
    of: PerSample | None
    worst: float
    scale: float = 1.0
    unit: str = ""
    difference: str = ""
    forms: tuple[str, str, str] = (".4g", ".3g", ".2g")
    resolution: float = 0.0
    limits: tuple[float, float] | None = None
    meter: Callable[[], Meter] | None = None

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


def accuracy(right: PerSample) -> Metric:
    """The accuracy in percent, from what tells for every sample whether it is named right."""
    return Metric(
        "accuracy",
        "max",
        right,
        worst=0.0,
        scale=100,
        unit="%",
        difference="points",
        forms=(".2f", ".1f", ".0f"),
        resolution=0.005,
        limits=(0, 101),
    )


def error(name: str, of: PerSample) -> Metric:
    """A mean error, of which less is better and a run that diverged has infinitely much."""
    return Metric(name, "min", of, worst=inf)
