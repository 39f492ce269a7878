"""Losses and metrics of the members of a stack, from their outputs and targets."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainability.data.seeding import drawing
from trainability.errors import ArgumentError
from trainability.introspect.hooks import tensors_in
from trainability.introspect.outputs import map_tensors
from trainability.tasks.base import Loss, Task
from trainability.tasks.metrics import Meter, PerSample

_FINE = torch.float64  # in which sums over a data set are kept where the device has it


def mean_loss(loss: Loss, outputs: Any, targets: Any, seeds: Sequence[int] | None = None) -> Tensor:
    """Mean loss of each member, ``(E,)``, from outputs and targets ``(E, B, ...)``."""
    if loss.by_member:
        found = []
        for member, pair in enumerate(_by_member(outputs, targets)):
            with drawing(seeds[member]) if seeds else nullcontext():
                found.append(loss_of_one(loss, *pair)[0])
        return torch.stack(found)
    sums, counts = _flat(loss.of, outputs, targets)
    return sums.mean(1) if counts is None else sums.sum(1) / _mean_count(counts.sum(1))


def _mean_count(counts: Tensor) -> Tensor:
    """The mean over the processes of the counts ``(E,)``, by which each divides its sums.

    The mean of the processes' losses, and of their gradients, is then that of all the things that are counted. Where
    there is none, as in a batch of padding, sums of 0 are divided by 1.
    """
    if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
        counts = counts / world
    return torch.where(counts == 0, 1, counts)


def loss_of_one(loss: Loss, outputs: Any, targets: Any) -> tuple[Tensor, int]:
    """Somebody's own loss of one network, ``()``, and the number of samples of which it is the mean.

    Raises:
        ArgumentError: it is neither one number nor one for each sample.
    """
    found, count = loss.of(outputs, targets), samples(targets)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape not in ((), (count,)):
        what = f"a tensor {tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else repr(found)
        advice = "return a tensor with one real number, or with one for every sample"
        if isinstance(found, float):
            advice = "return a tensor, without .item(), so that it has a gradient"
        place = getattr(loss.of, "reference", "the loss")
        raise ArgumentError(f"{place} returns {what[:80]} for {count} samples; {advice}", code="loss-shape")
    return found.mean(), count


def samples(nest: Any) -> int:
    """The number of samples in a tensor, or a nest of tensors, ``(N, ...)``."""
    return len(next(tensors_in(nest)))


def _flat(score: PerSample, outputs: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
    """Scores ``(E, B)``, or sums and counts: the samples of all members are scored as if of one network."""
    members = next(tensors_in(targets)).shape[:2]

    def joined(t: Tensor) -> Tensor:
        return t.flatten(0, 1) if t.shape[:2] == members else t

    found = score(map_tensors(joined, outputs), map_tensors(joined, targets))
    if isinstance(found, tuple):
        return found[0].view(members), found[1].view(members)
    return found.view(members), None


def _by_member(outputs: Any, targets: Any) -> list[tuple[Any, Any]]:
    """The outputs and targets of each member."""
    count = len(next(tensors_in(targets)))

    def own(nest: Any, member: int) -> Any:
        return map_tensors(lambda t: t[member] if t.dim() and len(t) == count else t, nest)

    return [(own(outputs, member), own(targets, member)) for member in range(count)]


class Evaluation:
    """Every metric of a task over a data set that is seen in batches, for each member of a stack.

    >>> from trainability.tasks import task
    >>> evaluation = Evaluation(task("classification"), members=2)
    >>> outputs = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])  # (members, samples, classes)
    >>> evaluation.update(outputs, torch.tensor([[0, 1], [0, 1]]))
    >>> evaluation.values()
    {'accuracy': [100.0, 50.0]}
    """

    def __init__(self, task: Task, members: int) -> None:
        self._task = task
        self._gathered: dict[str, _Means | list[Meter]] = {
            metric.name: _Means(metric.of) if metric.of else _meters(metric.meter, members) for metric in task.metrics
        }

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch of outputs and targets ``(E, B, ...)``."""
        outputs = self._task.reads(outputs)
        for gathered in self._gathered.values():
            if isinstance(gathered, _Means):
                gathered.update(outputs, targets)
            else:
                for meter, pair in zip(gathered, _by_member(outputs, targets), strict=True):
                    meter.update(*pair)

    def values(self) -> dict[str, list[float]]:
        """Each metric of each member."""
        found = {}
        for metric in self._task.metrics:
            own = self._gathered[metric.name]
            values = own.compute() if isinstance(own, _Means) else [float(meter.compute()) for meter in own]
            found[metric.name] = [metric.scale * value for value in values]
        return found


def _meters(make: Callable[[], Meter] | None, members: int) -> list[Meter]:
    assert make is not None, "a metric has one of `of` and `meter`"
    return [make() for _ in range(members)]


class _Means:
    """The mean of a score over all samples, for each member."""

    def __init__(self, score: PerSample) -> None:
        self._score = score
        self._sums: Tensor | float = 0.0
        self._counts: Tensor | float = 0.0

    def update(self, outputs: Any, targets: Any) -> None:
        sums, counts = _flat(self._score, outputs, targets)
        kind = torch.float32 if sums.device.type == "mps" else _FINE
        self._sums = self._sums + sums.to(kind).sum(1)
        self._counts = self._counts + (sums.shape[1] if counts is None else counts.to(kind).sum(1))

    def compute(self) -> Sequence[float]:
        assert isinstance(self._sums, Tensor), "no batch was given"
        found: list[float] = (self._sums / self._counts).tolist()
        return found
