"""Samples that are read as they are needed: from a map-style dataset, or from somebody's own loader."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from trainability.data.dataset import Split
from trainability.data.seeding import drawing, stream
from trainability.errors import DataError
from trainability.introspect.hooks import tensors_in
from trainability.introspect.outputs import map_tensors

Collate = Callable[[list[Any]], Any]
_TARGETS = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class DatasetPart:
    """A map-style dataset, of which each pass has an order of its own; what a sample draws depends on its seed alone.

    Args:
        dataset: gives ``dataset[i]``, a pair of input and target, for ``len(dataset)`` samples.
        collate: makes a batch of a list of samples.
        workers: processes that read ahead.
        device: where batches go.
    """

    dataset: Any
    collate: Collate = default_collate
    workers: int = 0
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def plain(self) -> bool:
        """True where a batch is made of samples by torch's own function, which looks at each by itself."""
        return self.collate is default_collate

    def first(self, count: int) -> Split:
        """The first samples, at most so many."""
        return next(self.batches([[(i, stream(0, "sample", i)) for i in range(min(count, len(self)))]], workers=0))

    def chunks(self, size: int) -> Iterator[Split]:
        """Yield all samples in order, so many at a time; each draws what it drew the last time."""
        numbered = [(i, stream(0, "sample", i)) for i in range(len(self))]
        yield from self.batches([numbered[at : at + size] for at in range(0, len(self), size)])

    def batches(
        self, plan: Iterable[list[tuple[int, int]]], workers: int | None = None, members: int | None = None
    ) -> Iterator[Split]:
        """Yield a batch for every list of numbers of samples and of seeds for what these draw.

        With ``members`` a list is that of the samples of one after another, each of which is made a batch by itself;
        they come stacked, ``(E, B, ...)``.

        Raises:
            DataError: the batches of members differ in shape.
        """
        loader: DataLoader[Any] = DataLoader(
            _Seeded(self.dataset),
            batch_sampler=plan,
            collate_fn=_Collate(self.collate, members),
            num_workers=self.workers if workers is None else workers,
            generator=torch.Generator(),  # or it would draw from torch's own
        )
        for batch in loader:
            yield split_of(batch).to(self.device)

    def to(self, device: torch.device | str) -> "DatasetPart":
        """The same, whose batches go to a device."""
        return replace(self, device=device)


@dataclass(frozen=True)
class LoaderPart:
    """Somebody's own loader, whose batches are taken as they come: its order and its batch size are its own.

    Args:
        loader: has a length, its number of batches, and gives pairs of inputs and targets.
        device: where batches go.
    """

    loader: Any
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        """The number of samples, as far as the loader tells."""
        try:
            return len(self.loader.dataset)
        except (AttributeError, TypeError):
            return self.per_pass * (getattr(self.loader, "batch_size", None) or 1)

    @property
    def per_pass(self) -> int:
        """The number of batches in a pass."""
        return len(self.loader)

    def first(self, count: int) -> Split:
        """The first samples of a pass, at most so many, and no more than a batch has."""
        for batch in self.once(0):
            return batch.take(slice(count))
        raise DataError("the loader is empty; give one that gives batches", code="empty")

    def chunks(self, size: int) -> Iterator[Split]:
        """Yield all batches of a pass."""
        yield from self.once(0)

    def once(self, number: int) -> Iterator[Split]:
        """Yield the batches of the pass of this number, whose order depends on it alone.

        Raises:
            DataError: the loader gives fewer batches than its length tells.
        """
        given = 0
        with drawing(stream(0, "loader", number)):
            own = getattr(self.loader, "generator", None)
            if isinstance(own, torch.Generator):
                own.manual_seed(stream(0, "loader", number))
            batches = iter(self.loader)
        while given < self.per_pass:
            with drawing(stream(given, "batch", number)):
                batch = next(batches, None)
            if batch is None:
                raise DataError(
                    f"the loader's length is {self.per_pass}, and it gave {given} batches in pass {number + 1}; its "
                    "__len__ is the number of batches",
                    code="loader-length",
                )
            given += 1
            yield split_of(batch).to(self.device)

    def to(self, device: torch.device | str) -> "LoaderPart":
        """The same, whose batches go to a device."""
        return replace(self, device=device)


class _Seeded(Dataset[Any]):
    """A dataset whose samples are asked for by number and seed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, numbered: tuple[int, int]) -> tuple[int, Any]:
        number, seed = numbered
        with drawing(seed):
            return seed, self.dataset[number]


class _Collate:
    """Makes batches of samples that come with their seeds, from the first of which each batch draws."""

    def __init__(self, collate: Collate, members: int | None) -> None:
        self._collate, self._members = collate, members

    def __call__(self, seeded: list[tuple[int, Any]]) -> Any:
        if self._members is None:
            return self._one(seeded)
        size = len(seeded) // self._members
        parts = [split_of(self._one(seeded[at : at + size])) for at in range(0, len(seeded), size)]
        try:
            stacked = [
                map_tensors(lambda *each: torch.stack(each), *nests)
                for nests in ([part.inputs for part in parts], [part.targets for part in parts])
            ]
        except RuntimeError as error:
            raise DataError(
                f"the batches of networks that train at once differ in shape ({error}); give all samples one shape",
                code="shapes-differ",
            ) from None
        return Split(*stacked)

    def _one(self, seeded: list[tuple[int, Any]]) -> Any:
        with drawing(seeded[0][0] ^ 1):
            return self._collate([sample for _, sample in seeded])


def split_of(batch: Any) -> Split:
    """Inputs and targets of a batch or a sample: a pair, the last of several, or ``labels`` of a mapping.

    Raises:
        DataError: it is none of these.

    >>> split_of({"input_ids": torch.ones(2, 3), "labels": torch.zeros(2)}).inputs
    {'input_ids': tensor([[1., 1., 1.],
            [1., 1., 1.]])}
    """
    if isinstance(batch, Split):
        return batch
    if isinstance(batch, Mapping):
        key = next((key for key in _TARGETS if key in batch), None)
        if key is not None:
            others = {name: value for name, value in batch.items() if name != key}
            return Split(as_tensors(others), as_targets(batch[key]))
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        *inputs, targets = batch
        return Split(as_tensors(inputs[0] if len(inputs) == 1 else tuple(inputs)), as_targets(targets))
    raise DataError(
        f"a batch is {described(batch)}; it should be a pair (inputs, targets), or a mapping with 'labels' among its "
        "keys",
        code="batch-form",
    )


def as_tensors(nest: Any) -> Any:
    """Tensors of arrays, data frames and lists of numbers, also in a tuple or a mapping.

    Raises:
        DataError: something else is there.
    """
    if isinstance(nest, Tensor):
        return nest.detach()
    if isinstance(nest, Mapping):
        return {key: as_tensors(value) for key, value in nest.items()}
    if isinstance(nest, list | tuple) and any(
        isinstance(entry, Tensor) or hasattr(entry, "__array__") for entry in nest
    ):
        return tuple(map(as_tensors, nest))
    import numpy

    try:
        return torch.from_numpy(numpy.array(nest))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{described(nest)} cannot be made a tensor ({error}); give numbers", code="not-numbers"
        ) from None


def as_targets(nest: Any) -> Any:
    """The same for targets: whole numbers as int64, which losses of classes take."""
    small = (torch.uint8, torch.int8, torch.int16, torch.int32)
    return map_tensors(lambda t: t.long() if t.dtype in small else t, as_tensors(nest))


def described(value: Any) -> str:
    """The kind of a value, in a few words.

    >>> described(None), described([torch.ones(2), 3])
    ('None', 'a list of 2 (Tensor, int)')
    """
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, list(value)[:4]))}"
    if isinstance(value, list | tuple):
        kinds = ", ".join(type(entry).__name__ for entry in value[:6])
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return "None" if value is None else f"of type {type(value).__name__}"


def same_length(nest: Any) -> int | None:
    """The length that all tensors of a nest have, or None."""
    lengths = {len(t) if t.dim() else -1 for t in tensors_in(nest)}
    return lengths.pop() if len(lengths) == 1 else None
