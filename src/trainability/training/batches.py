"""The samples that each member of a stack sees at each step, in order and augmented."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trainability.data.augment import Augment
from trainability.data.dataset import Dataset, Split
from trainability.data.seeding import Generators, stream
from trainability.data.streamed import DatasetPart, LoaderPart
from trainability.errors import ArgumentError
from trainability.introspect.hooks import tensors_in
from trainability.introspect.outputs import map_tensors


class Batches(Protocol):
    """The batches of a training: inputs and targets ``(E, B, ...)`` for every step, counted from 0.

    Attributes:
        seeds: of the members.
        per_epoch: steps in a pass over the training set.
        resident: a step's batch is taken from tensors that stay where they are.
    """

    seeds: list[int]
    per_epoch: int
    resident: bool

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """Those from which the batches draw on the device."""

    def set(self, step: int) -> None:
        """Make ready for the batch of a step, which depends on the seeds and the step alone."""

    def current(self) -> tuple[Any, Any]:
        """Inputs and targets of that step."""

    def close(self) -> None:
        """Let go of what was read ahead, and of the processes that read."""


def batches_of(
    data: Dataset,
    seeds: Sequence[int],
    batch_size: int,
    augmentation: Augment | None = None,
    *,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """The batches of a data set, each member's in the order of its own seed.

    Of several ranks each takes its share of every batch. The samples that do not fill a batch at the end of an epoch
    are left out; the next epoch has another order. A loader of somebody's own gives all members the same batches.

    Args:
        data: the data set, on the device.
        seeds: of the members.
        batch_size: samples per member and step, over all ranks.
        augmentation: applied to every member's images by its own seed.
        rank: of this process.
        world: how many processes share each batch.

    Raises:
        ArgumentError: a loader that several processes would have to share.
    """
    batch_size = data.batch_size or batch_size
    if isinstance(data.train, Split):
        return ResidentBatches(data, data.train, seeds, batch_size, augmentation, rank=rank, world=world)
    if isinstance(data.train, DatasetPart):
        return DatasetBatches(data, data.train, seeds, batch_size, rank=rank, world=world)
    if world > 1:
        raise ArgumentError(
            "a loader's own batches cannot be shared by several processes; give the dataset in place of the loader, or "
            "take engine.devices: 1",
            code="needs-one-process",
        )
    assert isinstance(data.train, LoaderPart)
    return LoaderBatches(data.train, seeds)


def steps_per_epoch(data: Dataset, batch_size: int) -> int:
    """The number of batches in a pass over the training set."""
    if isinstance(data.train, LoaderPart):
        return data.train.per_pass
    return max(1, len(data.train) // (data.batch_size or batch_size))


class _Ordered:
    """The order of samples of every member, drawn anew for every epoch."""

    def __init__(self, count: int, seeds: Sequence[int], batch_size: int, rank: int, world: int) -> None:
        self.seeds = list(seeds)
        self.size = min(batch_size, count) // world
        self.per_epoch = max(1, count // (self.size * world))
        self._count, self._rank, self._world = count, rank, world
        self._epoch = -1
        self._order = torch.empty(0)

    def index(self, step: int) -> Tensor:
        """The numbers of the samples of a step, ``(E, B)``."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._orders(epoch), epoch
        begin = (number * self._world + self._rank) * self.size
        return self._order[:, begin : begin + self.size]

    def _orders(self, epoch: int) -> Tensor:
        each = {  # drawn on the CPU, so that every device has the same order
            seed: torch.randperm(self._count, generator=torch.Generator().manual_seed(stream(seed, "order", epoch)))
            for seed in dict.fromkeys(self.seeds)
        }
        return torch.stack([each[seed] for seed in self.seeds])


class ResidentBatches(_Ordered):
    """Batches from tensors on the device."""

    resident = True

    def __init__(
        self,
        data: Dataset,
        train: Split,
        seeds: Sequence[int],
        batch_size: int,
        augmentation: Augment | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(len(train), seeds, batch_size, rank, world)
        self._data, self._train, self._augmentation = data, train, augmentation
        self._device = _device_of(train)
        self._noise = Generators(self.seeds if augmentation else [], self._device)
        self._now = torch.zeros(len(self.seeds), self.size, dtype=torch.long, device=self._device)
        if data.mean is not None and data.std is not None:
            channels = (-1, 1, 1)
            self._offset = (data.mean * 255).view(channels)
            self._factor = (1 / (data.std * 255)).view(channels)

    def __call__(self, step: int) -> tuple[Any, Any]:
        """Return inputs and targets of a step."""
        self.set(step)
        return self.current()

    @property
    def generators(self) -> list[torch.Generator]:
        """Those from which the augmentation draws."""
        return self._noise.all

    def set(self, step: int) -> None:
        """Put the numbers of the samples where the device looks for them, and the generators to what a step draws."""
        self._now.copy_(self.index(step))
        self._noise.at("augment", self._rank, step)

    def current(self) -> tuple[Any, Any]:
        """Inputs and targets of the samples with these numbers."""
        index, data, train = self._now, self._data, self._train
        targets = map_tensors(lambda t: t[index], train.targets)
        if data.mean is None:
            inputs = map_tensors(lambda t: t[index], train.inputs)
        elif self._augmentation is None:
            pixels = torch.sub(train.inputs[index], self._offset).mul_(self._factor)
            inputs = data.located(pixels, dim=2)
        else:
            shaped = [
                self._augmentation(train.inputs[one].float().div_(255), generator)
                for one, generator in zip(index, self._noise.all, strict=True)
            ]
            inputs = data.normalize(torch.stack(shaped))
        return inputs, inputs if data.reconstructs else targets

    def close(self) -> None:
        """Nothing is read ahead."""

    def _orders(self, epoch: int) -> Tensor:
        return super()._orders(epoch).to(self._device)


class _ReadAhead(ABC):
    """Batches from an iterator over the steps that follow one another, read ahead of the step that needs them."""

    resident = False
    generators: tuple[torch.Generator, ...] = ()  # what samples draw does not come from the device

    def __init__(self) -> None:
        self._step: int | None = None
        self._coming: Iterator[Split] = iter(())
        self._batch: Split

    def set(self, step: int) -> None:
        """Read the batch of a step, unless it is there."""
        if step == self._step:
            return
        if self._step is None or step != self._step + 1:
            self._coming = self._from(step)
        self._batch = next(self._coming)
        self._step = step

    def close(self) -> None:
        """Forget what was read ahead, and end the processes that read."""
        if isinstance(self._coming, Generator):
            self._coming.close()
        self._coming, self._step = iter(()), None

    @abstractmethod
    def _from(self, step: int) -> Iterator[Split]:
        """Yield the batches of this step and of those after it."""


class DatasetBatches(_ReadAhead, _Ordered):
    """Batches of a map-style dataset."""

    def __init__(
        self, data: Dataset, train: DatasetPart, seeds: Sequence[int], batch_size: int, *, rank: int = 0, world: int = 1
    ) -> None:
        _ReadAhead.__init__(self)
        _Ordered.__init__(self, len(train), seeds, batch_size, rank, world)
        self._data, self._train = data, train

    def current(self) -> tuple[Any, Any]:
        """Inputs and targets of that step."""
        return self._data.prepared(self._batch)

    def _from(self, step: int) -> Iterator[Split]:
        return self._train.batches(self._plan(step), members=len(self.seeds))

    def _plan(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """Yield numbers and seeds of all members' samples for this step and those after it."""
        while True:
            index = self.index(step).tolist()
            yield [
                (number, stream(seed, "sample", step, number))
                for seed, own in zip(self.seeds, index, strict=True)
                for number in own
            ]
            step += 1


class LoaderBatches(_ReadAhead):
    """Batches of somebody's own loader, the same for all members."""

    def __init__(self, train: LoaderPart, seeds: Sequence[int]) -> None:
        self.seeds, self._train = list(seeds), train
        super().__init__()
        self.per_epoch = train.per_pass

    def current(self) -> tuple[Any, Any]:
        """Inputs and targets of that step."""
        batch = self._batch
        inputs, targets = (
            map_tensors(lambda t: t.expand(len(self.seeds), *t.shape).clone(), nest)
            for nest in (batch.inputs, batch.targets)
        )
        return inputs, targets

    def _from(self, step: int) -> Iterator[Split]:
        epoch, skipped = divmod(step, self.per_epoch)
        while True:
            for number, batch in enumerate(self._train.once(epoch)):
                if number >= skipped:
                    yield batch
            epoch, skipped = epoch + 1, 0


def _device_of(part: Split) -> torch.device:
    return next(tensors_in(part.targets)).device
