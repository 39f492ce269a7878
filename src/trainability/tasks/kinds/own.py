"""A user's own loss and metrics as a task."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainability._references import load
from trainability.errors import ArgumentError, suggestion
from trainability.tasks.base import Loss, Task, TaskKind
from trainability.tasks.metrics import Meter, Metric
from trainability.tasks.registry import register

Resolve = Callable[[str], Any]


@register("own")
@dataclass(frozen=True)
class Own(TaskKind):
    """A loss of the user's own, given the model's outputs as they are; without metrics the loss is the metric.

    Args:
        loss: file.py:name or package.module:name: outputs and targets to one number, or one for each sample
        metrics: by name: {r2: {of: "file.py:r2", direction: max}}, of outputs and targets, or torchmetrics' classes
    """

    loss: str = ""
    metrics: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.loss:
            raise ArgumentError("a task of one's own needs its loss: write loss: file.py:name", code="missing-setting")
        for name, metric in self.metrics.items():
            if not isinstance(metric, Mapping) or set(metric) != {"of", "direction"}:
                raise ArgumentError(
                    f"metrics: {name} is a mapping with of: file.py:name and direction: max or min",
                    code="setting-type",
                )
            if metric["direction"] not in ("max", "min"):
                hint = suggestion(metric["direction"], ("max", "min"))
                raise ArgumentError(
                    f"metrics: the direction of {name} is {metric['direction']!r}; {hint}choose from max, min",
                    code="unknown-choice",
                )

    def task(self, resolve: Resolve = load) -> Task:
        """The task; what it refers to is looked up when it is first used."""
        loss = Loss(_Later(self.loss, resolve), "loss", "L", by_member=True)
        found = tuple(
            _metric(name, _direction(metric["direction"]), _Later(metric["of"], resolve))
            for name, metric in self.metrics.items()
        )
        return Task("own", loss, found or (_loss_metric(loss),), reads=lambda outputs: outputs)


class _Later:
    """A function of outputs and targets that is looked up when it is first called."""

    def __init__(self, reference: str, resolve: Resolve) -> None:
        self.reference, self._resolve = reference, resolve
        self._function: Callable[[Any, Any], Any] | None = None

    def found(self) -> Any:
        """What the reference names."""
        return self._resolve(self.reference)

    def __call__(self, outputs: Any, targets: Any) -> Any:
        if self._function is None:
            found = self.found()
            self._function = found() if isinstance(found, type) else found  # such as nn.MSELoss
            _check_loss(self.reference, self._function)
        return self._function(outputs, targets)


def _check_loss(reference: str, function: Any) -> None:
    parameters = getattr(function, "parameters", None)
    if callable(parameters) and any(True for _ in parameters()):
        raise ArgumentError(
            f"{reference} has parameters of its own, which would not be trained and which all networks would share; "
            "put them into the model, which may return them",
            code="loss-parameters",
        )


def _direction(word: str) -> Literal["max", "min"]:
    return "max" if word == "max" else "min"


def _metric(name: str, direction: Literal["max", "min"], of: _Later) -> Metric:
    worst = -math.inf if direction == "max" else math.inf
    return Metric(name, direction, None, worst, meter=lambda: _meter(name, of.found()))


def _loss_metric(loss: Loss) -> Metric:
    return Metric("loss", "min", None, math.inf, meter=lambda: _MeanLoss(loss))


def _meter(name: str, of: Any) -> Meter:
    """What gathers a metric: an object of torchmetrics, or whole outputs and targets for a function of them."""
    made = of() if isinstance(of, type) else of
    if hasattr(made, "update") and hasattr(made, "compute"):
        return _Stateful(name, made)
    return _Whole(name, made)


class _Stateful:
    """An object of torchmetrics, on the device of what it is given."""

    def __init__(self, name: str, metric: Any) -> None:
        import copy

        self._name, self._metric = name, copy.deepcopy(metric)
        if hasattr(metric, "reset"):
            self._metric.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch."""
        if hasattr(self._metric, "to"):
            self._metric.to(targets.device)
        self._metric.update(outputs, targets)

    def compute(self) -> float:
        """The metric of all batches."""
        return _number(self._name, self._metric.compute())


class _Whole:
    """A function of the outputs and targets of a whole data set."""

    def __init__(self, name: str, function: Callable[[Any, Any], Any]) -> None:
        self._name, self._function = name, function
        self._seen: list[tuple[Any, Any]] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Keep a batch."""
        self._seen.append((outputs, targets))

    def compute(self) -> float:
        """The metric of all batches."""
        import torch

        from trainability.introspect.outputs import map_tensors
        from trainability.tasks.scoring import samples

        counts = torch.tensor([float(samples(targets)) for _, targets in self._seen])

        def joined(*parts: Any) -> Any:
            if parts[0].dim():
                return torch.cat(parts)
            weights = (counts / counts.sum()).to(parts[0].device)  # of a mean of each batch
            return (torch.stack(parts).float() * weights).sum()

        outputs, targets = (map_tensors(joined, *nests) for nests in zip(*self._seen, strict=True))
        return _number(self._name, self._function(outputs, targets))


class _MeanLoss:
    """The mean over samples of a loss of the user's own, where one of a batch counts for all its samples."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch."""
        from trainability.data.seeding import drawing, stream
        from trainability.tasks.scoring import loss_of_one

        with drawing(stream(0, "score", self._count)):
            mean, count = loss_of_one(self._loss, outputs, targets)
        self._sum, self._count = self._sum + float(mean) * count, self._count + count

    def compute(self) -> float:
        """The mean."""
        return self._sum / self._count


def _number(name: str, value: Any) -> float:
    """The number that a metric is, or the mean of what it gives for every sample."""
    import torch

    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(
            f"the metric {name} returns {type(value).__name__}; it should return a number", code="metric-value"
        ) from None
    return float(found.mean())
