"""A user's own data as a data set: pairs of tensors, map-style datasets, loaders."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from trainability.data.dataset import Dataset, Part, Split
from trainability.data.streamed import DatasetPart, LoaderPart, as_targets, as_tensors, described, same_length, split_of
from trainability.errors import DataError
from trainability.introspect.hooks import tensors_in

_PARTS = ("train", "validation", "test")
_SHARES = (0.70, 0.15)  # of training and validation; the rest is for testing
_EMPTY = Split(torch.empty(0), torch.empty(0))


def own_data(given: Any, name: str, *, seed: int = 0) -> Dataset:
    """Make a data set of what a user has.

    Args:
        given: a mapping with ``train``, ``validation`` and, if there is one, ``test``; or a list of two or three parts
            in that order; or one part, of which 70 % are for training, 15 % for validation and 15 % for testing. A
            part is a pair ``(inputs, targets)`` of tensors or arrays, where inputs may be a tuple or a mapping of
            them; a map-style dataset; or a loader. A mapping may say how many ``classes`` there are.
        name: in the record.
        seed: of the split of one part.

    Raises:
        DataError: the form is another one, a part is empty, targets are of another length than their inputs, a loader
            has no length, or stands alone.

    >>> data = own_data((torch.randn(100, 4), torch.randn(100, 1)), "mine")
    >>> len(data.train), len(data.val), len(data.test), data.shape
    (70, 15, 15, (4,))
    """
    if isinstance(given, Dataset):
        return given
    parts, classes = _named_parts(given, name)
    batch_size = _batch_size(parts["train"])
    made = {part: _part(value, f"{name}, {part}") for part, value in parts.items()}
    if "validation" not in made:
        if isinstance(made["train"], LoaderPart) or isinstance(parts["train"], DataLoader):
            raise DataError(
                f"{name} is a loader alone, which is taken for training; give a mapping with 'train' and 'validation'",
                code="needs-validation",
            )
        made = _split(made["train"], seed)
    for part, value in made.items():
        least = 2 if part == "train" else 1
        if len(value) < least:
            raise DataError(
                f"{name}, {part}: it has {len(value)} of the samples that it needs, at least {least}",
                code="empty" if not len(value) else "too-few",
            )
    train, val = made["train"], made["validation"]
    classes = classes or _outputs(train, parts["train"])
    sources = f"given: {described(parts['train'])}"
    test = made.get("test", _EMPTY)
    return Dataset(name, classes, train, val, test, None, None, sources, seed, batch_size=batch_size)


def own_part(given: Any, name: str) -> Part:
    """Make one part of a data set of what a user has: a pair of tensors, a map-style dataset or a loader.

    Raises:
        DataError: it has another form, or is empty.
    """
    if not _is_part(given):
        raise DataError(
            f"{name} is {described(given)}; give a pair (inputs, targets), a map-style dataset or a loader",
            code="data-form",
        )
    part = _part(given, name)
    if not len(part):
        raise DataError(f"{name} is empty; give one that has samples", code="empty")
    return part


def data_of(given: Any, options: Mapping[str, Any]) -> Any:
    """What a function, or anything else that is called for data, returns; or data as they are."""
    makes = callable(given) and not hasattr(given, "__getitem__") and not hasattr(given, "__iter__")
    return given(**options) if makes else given


def _named_parts(given: Any, name: str) -> tuple[dict[str, Any], int | None]:
    """The parts by name, and the number of classes where it is given."""
    if isinstance(given, Mapping):
        content = {("validation" if key == "val" else key): value for key, value in given.items()}
        classes = content.pop("classes", None)
        unknown = [key for key in content if key not in _PARTS or content[key] is None or len(content) + 1 < len(given)]
        if unknown or "train" not in content or "validation" not in content:
            raise DataError(
                f"{name} is a mapping with {', '.join(map(repr, given)) or 'nothing'}; give 'train', 'validation' and, "
                "if there is one, 'test'",
                code="data-form",
            )
        return {part: content[part] for part in _PARTS if content.get(part) is not None}, classes
    if isinstance(given, list | tuple) and len(given) in (2, 3) and all(map(_is_part, given)):
        return dict(zip(_PARTS, given, strict=False)), None
    if _is_part(given):
        return {"train": given}, None
    raise DataError(
        f"{name} is {described(given)}; give a mapping with 'train', 'validation' and 'test', a list of two or three "
        "parts such as ((x, y), (x_val, y_val)), or a pair (inputs, targets)",
        code="data-form",
    )


def _is_part(value: Any) -> bool:
    """Return whether a value is a pair of inputs and targets, a dataset or a loader."""
    if isinstance(value, Split | DatasetPart | LoaderPart):
        return True
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(map(_is_nest, value))
    if isinstance(value, Mapping | str | bytes) or _is_array(value):
        return False
    return hasattr(value, "__iter__") or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _is_nest(value: Any) -> bool:
    """Return whether a value is a tensor or array, or a tuple or mapping of them, or a list of numbers."""
    if _is_array(value):
        return True
    entries = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else None
    return bool(entries) and all(_is_array(entry) or isinstance(entry, int | float) for entry in entries or ())


def _part(value: Any, name: str) -> Part:
    if isinstance(value, Split | DatasetPart | LoaderPart):
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_nest, value)):
        return _pair(value, name)
    if isinstance(value, DataLoader):
        return _of_loader(value, name)
    if isinstance(value, IterableDataset) or not hasattr(value, "__getitem__"):
        return _fed(value, name)
    return _of_dataset(value, name)


def _pair(pair: Sequence[Any], name: str) -> Split:
    inputs, targets = as_tensors(pair[0]), as_targets(pair[1])
    _check_finite(inputs, f"{name}: the inputs")
    _check_finite(targets, f"{name}: the targets")
    lengths = same_length(inputs), same_length(targets)
    if None in lengths or lengths[0] != lengths[1]:
        found = [", ".join(str(tuple(t.shape)) for t in tensors_in(nest)) for nest in (inputs, targets)]
        raise DataError(
            f"{name}: the inputs are {found[0]} and the targets {found[1]}; there must be one target for every input",
            code="lengths-differ",
        )
    return Split(inputs, targets)


def _check_finite(nest: Any, what: str) -> None:
    for tensor in tensors_in(nest):
        if tensor.is_floating_point() and tensor.dim() and not bool((finite := tensor.isfinite()).all()):
            row = int((~finite).reshape(len(tensor), -1).any(1).nonzero()[0])
            raise DataError(f"{what} of sample {row} are not finite; leave it out, or fill it in", code="not-finite")


def _of_loader(loader: "DataLoader[Any]", name: str) -> Part:
    """The samples of a loader in an order of each network's own, or its batches where it has a sampler of its own."""
    plain = (
        not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and not getattr(loader.sampler, "replacement", False)
        and loader.batch_size is not None
    )
    if not plain:
        return _fed(loader, name)
    if loader.collate_fn is default_collate and (held := _held(loader.dataset)) is not None:
        return held
    return replace(_samples(loader.dataset, name), collate=loader.collate_fn, workers=loader.num_workers)


def _of_dataset(dataset: Any, name: str) -> Part:
    held = _held(dataset)
    return held if held is not None else _samples(dataset, name)


def _samples(dataset: Any, name: str) -> DatasetPart:
    try:
        count = len(dataset)
    except TypeError:
        raise DataError(f"{name} has no length; give its dataset a __len__", code="no-length") from None
    if count:
        split_of(dataset[0])  # a sample that is no pair is refused before anything is trained
    return DatasetPart(dataset)


def _held(dataset: Any) -> Split | None:
    """The tensors of a dataset that only holds tensors, or a subset of them."""
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        *inputs, targets = dataset.tensors
        return Split(inputs[0] if len(inputs) == 1 else tuple(inputs), as_targets(targets))
    if isinstance(dataset, Subset) and (whole := _held(dataset.dataset)) is not None:
        return whole.take(torch.as_tensor(list(dataset.indices)))
    return None


def _fed(loader: Any, name: str) -> LoaderPart:
    try:
        count = len(loader)
    except TypeError:
        raise DataError(
            f"{name} has no length, and so no end of an epoch; give it a __len__, the number of its batches, or give a "
            "map-style dataset",
            code="no-length",
        ) from None
    if not count:
        raise DataError(f"{name} is empty; give one that has batches", code="empty")
    return LoaderPart(loader)


def _split(part: Part, seed: int) -> dict[str, Part]:
    """Draw training, validation and test samples by a seed."""
    count = len(part)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    train, val = round(_SHARES[0] * count), round(_SHARES[1] * count)
    indices = dict(zip(_PARTS, order.split([train, val, count - train - val]), strict=True))
    if isinstance(part, Split):
        return {name: part.take(index) for name, index in indices.items()}
    assert isinstance(part, DatasetPart)
    return {name: replace(part, dataset=Subset(part.dataset, index.tolist())) for name, index in indices.items()}


def _batch_size(part: Any) -> int | None:
    """The batch size of a loader."""
    return getattr(part, "batch_size", None) if isinstance(part, DataLoader) else None


def _outputs(train: Part, given: Any) -> int | None:
    """The number of outputs that targets ask for, where it can be told: classes, or numbers for each sample."""
    dataset = given.dataset if isinstance(given, DataLoader) else given
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple):
        return len(classes)
    targets = train.targets if isinstance(train, Split) else getattr(dataset, "targets", None)
    if targets is None or isinstance(targets, Mapping | tuple):
        return None
    try:
        targets = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    if not targets.is_floating_point():
        return int(targets.max()) + 1 if targets.numel() else None
    return 1 if targets.dim() == 1 else int(targets[0].numel())
