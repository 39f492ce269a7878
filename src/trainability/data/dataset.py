"""A data set in memory: images as uint8, labels, seeded splits, normalization."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainability.data.pln import per_location_normalize
from trainability.errors import DataError


@dataclass(frozen=True)
class Split:
    """Images ``(N, C, H, W)`` as uint8 and labels ``(N,)``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        """Return the samples at ``index``."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """Move to a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test splits, with the mean and standard deviation of the training pixels per channel.

    With ``pln`` inputs get a channel of ones and are normalized at every location (`per_location_normalize`).
    """

    name: str
    classes: int
    train: Split
    val: Split
    test: Split
    mean: Tensor
    std: Tensor
    source: str
    split_seed: int
    pln: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape ``(C, H, W)`` of one input."""
        channels, *size = self.train.images.shape[1:]
        return (channels + self.pln, *size)

    def to(self, device: torch.device | str) -> "Dataset":
        """Move everything to a device."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device) for name in ("train", "val", "test", "mean", "std")
        }
        return replace(self, **moved)

    def inputs(self, images: Tensor) -> Tensor:
        """Turn uint8 images into float32 with mean 0 and variance 1 per channel over the training set."""
        return self.normalize(images.float().div_(255))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize pixels in [0, 1]."""
        x = (pixels - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        return self.located(x)

    def located(self, inputs: Tensor, dim: int = -3) -> Tensor:
        """Per-location normalization of inputs that are normalized per channel, if the data set has it."""
        return per_location_normalize(inputs, dim=dim) if self.pln else inputs

    def describe(self) -> dict[str, Any]:
        """The part of it that a record keeps."""
        return {
            "name": self.name,
            "source": self.source,
            "split_seed": self.split_seed,
            "pln": self.pln,
            "train": len(self.train),
            "val": len(self.val),
            "test": len(self.test),
        }


def split(
    name: str, classes: int, pool: Split, test: Split | None, held_out: int, source: str, seed: int, *, tested: int = 0
) -> Dataset:
    """Draw ``held_out`` validation samples by ``seed``, and ``tested`` test samples where there is no test set.

    Raises:
        DataError: nothing would be left to train on.
    """
    if not 0 <= held_out < len(pool) - tested:
        raise DataError(
            f"held_out: {held_out} of the {len(pool) - tested} training samples of {name} cannot be held out",
            code="out-of-range",
        )
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    val, rest = pool.take(order[:held_out]), order[held_out:]
    if test is None:
        test, rest = pool.take(rest[:tested]), rest[tested:]
    train = pool.take(rest)
    pixels = train.images.float().div_(255)
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    return Dataset(name, classes, train, val, test, mean, std, source, seed)
