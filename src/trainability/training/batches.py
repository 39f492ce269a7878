"""The samples that each member of a stack sees at each step, in order and augmented."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainability.data.augment import Augment
from trainability.data.dataset import Dataset
from trainability.training.seeding import Generators, stream


class Batches:
    """Batches ``(E, B, C, H, W)`` and labels ``(E, B)``, each member in the order of its own seed.

    A step's batch depends on the seed and the step alone. Of several ranks each takes its share of every batch.
    The samples that do not fill a batch at the end of an epoch are left out; the next epoch has another order.

    Args:
        data: the data set, on the device.
        seeds: of the members.
        batch_size: samples per member and step, over all ranks.
        augmentation: applied to every member's images by its own seed.
        rank: of this process.
        world: how many processes share each batch.
    """

    def __init__(
        self,
        data: Dataset,
        seeds: Sequence[int],
        batch_size: int,
        augmentation: Augment | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._data = data
        self.seeds = list(seeds)
        self.size = min(batch_size, len(data.train)) // world
        self._augmentation = augmentation
        self._rank, self._world = rank, world
        self.per_epoch = max(1, len(data.train) // (self.size * world))
        self._noise = Generators(self.seeds if augmentation else [], data.train.images.device)
        self._epoch = -1
        self._order = torch.empty(0)
        channels = (-1, 1, 1)
        self._offset = (data.mean * 255).view(channels)
        self._factor = (1 / (data.std * 255)).view(channels)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of a step, counted from 0 over the whole training."""
        self.seed(step)
        return self.take(self.index(step))

    @property
    def generators(self) -> list[torch.Generator]:
        """Those from which the augmentation draws."""
        return self._noise.all

    def seed(self, step: int) -> None:
        """Set the generators to the beginning of what a step draws."""
        self._noise.at("augment", self._rank, step)

    def index(self, step: int) -> Tensor:
        """The numbers of the samples of a step, ``(E, B)``."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._orders(epoch), epoch
        begin = (number * self._world + self._rank) * self.size
        return self._order[:, begin : begin + self.size]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the samples with these numbers."""
        train = self._data.train
        if self._augmentation is None:
            pixels = torch.sub(train.images[index], self._offset).mul_(self._factor)
            return self._data.located(pixels, dim=2), train.labels[index]
        shaped = [
            self._augmentation(train.images[one].float().div_(255), generator)
            for one, generator in zip(index, self._noise.all, strict=True)
        ]
        return self._data.normalize(torch.stack(shaped)), train.labels[index]

    def _orders(self, epoch: int) -> Tensor:
        device, count = self._data.train.labels.device, len(self._data.train)
        each = {  # drawn on the CPU, so that every device has the same order
            seed: torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, "order", epoch)))
            for seed in dict.fromkeys(self.seeds)
        }
        return torch.stack([each[seed] for seed in self.seeds]).to(device)
