"""A data set in three parts, of which each lies in memory or is read as it is needed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trainability.data.pln import per_location_normalize
from trainability.errors import DataError
from trainability.introspect.hooks import tensors_in
from trainability.introspect.outputs import map_tensors


class Part(Protocol):
    """The training, validation or test part of a data set."""

    def __len__(self) -> int:
        """The number of samples."""

    def first(self, count: int) -> "Split":
        """The first samples, at most so many."""

    def chunks(self, size: int) -> "Iterator[Split]":
        """Yield all samples in order, about so many at a time."""

    def to(self, device: torch.device | str) -> "Part":
        """The same, whose samples are on a device."""


@dataclass(frozen=True)
class Split:
    """Inputs and targets in memory, ``(N, ...)``: tensors, or tuples or mappings of tensors."""

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        return len(next(tensors_in(self.targets)))

    def take(self, index: Tensor | slice) -> "Split":
        """Return the samples at ``index``."""
        return Split(*(map_tensors(lambda t: t[index], nest) for nest in (self.inputs, self.targets)))

    def first(self, count: int) -> "Split":
        """The first samples, at most so many."""
        return self.take(slice(count))

    def chunks(self, size: int) -> "Iterator[Split]":
        """Yield all samples in order, so many at a time."""
        for begin in range(0, len(self), size):
            yield self.take(slice(begin, begin + size))

    def to(self, device: torch.device | str) -> "Split":
        """Move to a device."""
        return Split(*(map_tensors(lambda t: t.to(device), nest) for nest in (self.inputs, self.targets)))


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test parts, and what is done to their inputs before a network gets them.

    Args:
        name: of the data set.
        classes: number of classes, or of outputs, where that is known.
        train: the training part.
        val: the validation part; may be empty.
        test: the test part; may be empty.
        mean: of images of uint8, the mean of the training pixels per channel, in [0, 1]; None for inputs that go to
            the network as they are.
        std: their standard deviation.
        source: where they come from.
        split_seed: seed of the split.
        pln: images get a channel of ones and are normalized at every location (`per_location_normalize`).
        reconstructs: the targets are the inputs.
        batch_size: that of the loader that the training samples came in, if they did.
    """

    name: str
    classes: int | None
    train: Part
    val: Part
    test: Part
    mean: Tensor | None
    std: Tensor | None
    source: str
    split_seed: int
    pln: bool = False
    reconstructs: bool = False
    batch_size: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, such as ``(C, H, W)``; of several inputs that of the first."""
        inputs = self.prepared(self.train.first(1))[0]
        return tuple(next(tensors_in(inputs)).shape[1:])

    def to(self, device: torch.device | str) -> "Dataset":
        """Move everything to a device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name in ("train", "val", "test", "mean", "std")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def reconstructing(self) -> "Dataset":
        """The same images as inputs in [0, 1] that are their own targets.

        Raises:
            DataError: they are normalized per location, or are not images.
        """
        if self.mean is None or self.std is None or self.pln:
            raise DataError(
                f"{self.name} with data.pln has no inputs in [0, 1] that could be reconstructed; leave it out",
                code="does-not-apply",
            )
        zero = torch.zeros_like(self.mean)
        return replace(self, mean=zero, std=zero + 1, reconstructs=True)

    def prepared(self, samples: Split) -> tuple[Any, Any]:
        """Inputs as a network gets them, and their targets."""
        inputs = self.inputs(samples.inputs)
        return inputs, inputs if self.reconstructs else samples.targets

    def inputs(self, raw: Any) -> Any:
        """Turn images of uint8 into float32 with mean 0 and variance 1 per channel over the training set."""
        return raw if self.mean is None else self.normalize(raw.float().div_(255))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize pixels in [0, 1]."""
        if self.mean is None or self.std is None:
            return pixels
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
    """Draw ``held_out`` validation images by ``seed``, and ``tested`` test images where there is no test set.

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
    pixels = train.inputs.float().div_(255)
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    return Dataset(name, classes, train, val, test, mean, std, source, seed)
