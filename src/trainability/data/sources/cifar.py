"""CIFAR-10 and CIFAR-100 from their official python files, which are pickles and are read without running any code."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainability.data.registry import Request, register
from trainability.data.sources.official import from_files_or_hub, official
from trainability.errors import DataError

if TYPE_CHECKING:
    from trainability.data.dataset import Dataset, Split


@dataclass(frozen=True)
class Cifar:
    """The place of the files of one of them, with their MD5 sums, and the key of the labels."""

    folder: str
    hub: str
    classes: int
    labels: bytes
    train: dict[str, str]
    test: dict[str, str]


CIFAR = {
    "cifar10": Cifar(
        "cifar-10-batches-py",
        "uoft-cs/cifar10",
        10,
        b"labels",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
    ),
    "cifar100": Cifar(
        "cifar-100-python",
        "uoft-cs/cifar100",
        100,
        b"fine_labels",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
}


@register("cifar10", takes=("dir", "hub"), needs=("dir", "hub"))
@register("cifar100", takes=("dir", "hub"), needs=("dir", "hub"))
def load_cifar(name: str, request: Request) -> "Dataset":
    """Read 60,000 photographs of 32 × 32 in ten or a hundred classes."""
    spec = CIFAR[name]

    def read(folder: Path) -> "tuple[Split, Split]":
        parts = [_together(folder / spec.folder, files, spec.labels) for files in (spec.train, spec.test)]
        return parts[0], parts[1]

    return from_files_or_hub(name, request, spec.hub, spec.classes, read)


def _together(folder: Path, files: dict[str, str], key: bytes) -> "Split":
    import torch

    from trainability.data.dataset import Split

    parts = [_batch(folder / name, md5, key) for name, md5 in files.items()]
    return Split(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def _batch(path: Path, md5: str, key: bytes) -> "Split":
    import torch

    from trainability.data.dataset import Split

    raw = official(path, md5)
    try:
        content = _Arrays(io.BytesIO(raw), encoding="bytes").load()
        images = torch.from_numpy(content[b"data"].copy()).view(-1, 3, 32, 32)
        return Split(images, torch.tensor(content[key]))
    except ImportError as error:
        raise DataError(
            "CIFAR's files need NumPy: pip install 'trainability[experiments]'", code="missing-extra"
        ) from error


class _Arrays(pickle.Unpickler):
    """Unpickles lists, numbers, bytes and NumPy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy

        allowed = {
            "_reconstruct": numpy.empty(0).__reduce__()[0],
            "ndarray": numpy.ndarray,
            "dtype": numpy.dtype,
        }
        if module.partition(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        raise DataError(f"the file holds {module}.{name}, which no official file does", code="file-damaged")
