"""Regression: one or several numbers for every sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainability.tasks.base import Chance, Loss, Task, TaskKind
from trainability.tasks.metrics import Metric, error
from trainability.tasks.pairing import as_rows, check_tensor
from trainability.tasks.registry import register

if TYPE_CHECKING:
    from torch import Tensor

_LOSSES = {
    "squared": ("mse_loss", "squared error", "SE"),
    "absolute": ("l1_loss", "absolute error", "AE"),
    "huber": ("huber_loss", "Huber loss", "HL"),
}


@register("regression")
@dataclass(frozen=True)
class Regression(TaskKind):
    """An error of outputs ``(N, D)`` or ``(N,)`` and targets ``(N, D)``, ``(N, 1)`` or ``(N,)``.

    The error of a sample is the mean over its D outputs. The metrics are the mean squared error ``mse``, the mean
    absolute error ``mae`` and R², ``r2``: the mean over the outputs of one minus their squared error over the variance
    of their targets, times the number of samples.

    Args:
        loss: what is trained on: squared, absolute, or huber (squared up to an error of 1, absolute beyond)
    """

    loss: Literal["squared", "absolute", "huber"] = "squared"

    def task(self) -> Task:
        """The task."""
        function, name, symbol = _LOSSES[self.loss]
        metrics = (
            error("mse", _mean_of("mse_loss")),
            error("mae", _mean_of("l1_loss")),
            Metric("r2", "max", None, worst=float("-inf"), forms=(".4f", ".3f", ".2f"), meter=RSquared),
        )
        chance = Chance(_variance, "always the mean of the targets", "mean of the targets", margin=0.05, relative=True)
        return Task("regression", Loss(_mean_of(function), name, symbol), metrics, chance, check=_check)


def _mean_of(function: str) -> "Callable[[Any, Any], Tensor]":
    """The mean of an error of torch over the outputs of each sample."""

    def of(outputs: "Tensor", targets: "Tensor") -> "Tensor":
        from torch.nn import functional

        found: Tensor = getattr(functional, function)(*as_rows(outputs, targets), reduction="none")
        return found.mean(1)

    return of


class RSquared:
    """R² over the batches of a data set, the mean of that of every output.

    Squared distances from the mean are carried from batch to batch, since sums of squares, as torchmetrics keeps them,
    cancel where targets lie far from 0. An output whose targets are all the same has an R² of 0, or of 1 without error.

    >>> import torch
    >>> r2 = RSquared()
    >>> r2.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    >>> r2.update(torch.tensor([3.0]), torch.tensor([3.0]))
    >>> round(r2.compute(), 4)
    0.8846
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0
        self._residual: Tensor | float = 0.0

    def update(self, outputs: "Tensor", targets: "Tensor") -> None:
        """Take a batch."""
        import torch

        rows = as_rows(outputs, targets)
        found, wanted = rows if rows[0].device.type == "mps" else (t.to(torch.float64) for t in rows)
        own, total = wanted.mean(0), self._count + len(wanted)
        away = own - self._mean
        self._spread = (
            self._spread + (wanted - own).square().sum(0) + away.square() * (self._count * len(wanted) / total)
        )
        self._mean = self._mean + away * (len(wanted) / total)
        self._residual = self._residual + (found - wanted).square().sum(0)
        self._count = total

    def compute(self) -> float:
        """The metric of all batches."""
        import torch

        spread, residual = torch.as_tensor(self._spread), torch.as_tensor(self._residual)
        flat = spread == 0
        ratio = torch.where(flat, (residual != 0).to(residual), residual / torch.where(flat, 1, spread))
        return float((1 - ratio).mean())


def _variance(targets: "Tensor") -> float:
    return float(targets.double().reshape(len(targets), -1).var(0, correction=0).mean())


def _check(outputs: "Tensor", targets: "Tensor") -> None:
    """Raise ArgumentError for outputs and targets that are not of one shape."""
    check_tensor("regression", targets)
    as_rows(outputs, targets)
