"""CIFAR-10 and CIFAR-100 from their official python files, which are pickles and are read without running any code."""

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainability.data.dataset import Split
from trainability.errors import DataError


@dataclass(frozen=True)
class Cifar:
    """Where the files of one of them lie, with their MD5 sums, and the key of the labels."""

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


def read_cifar(spec: Cifar, data_dir: Path) -> tuple[Split, Split]:
    """Training and test images, after their checksums were compared with the published ones."""
    folder = data_dir / spec.folder
    return _together(folder, spec.train, spec.labels), _together(folder, spec.test, spec.labels)


def _together(folder: Path, files: dict[str, str], key: bytes) -> Split:
    parts = [_batch(folder / name, md5, key) for name, md5 in files.items()]
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _batch(path: Path, md5: str, key: bytes) -> Split:
    raw = official(path, md5)
    try:
        content = _Arrays(io.BytesIO(raw), encoding="bytes").load()
        images = torch.from_numpy(content[b"data"].copy()).view(-1, 3, 32, 32)
        return Split(images, torch.tensor(content[key]))
    except ImportError as error:
        raise DataError(
            "CIFAR's files need NumPy: pip install 'trainability[experiments]'", code="missing-extra"
        ) from error


def official(path: Path, md5: str) -> bytes:
    """The bytes of a file whose MD5 sum is the published one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; put the official file there, or take the hub (--hub, in a recipe data.hub: true)",
            code="file-missing",
        ) from None
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}", code="file-unreadable") from None
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{path} is damaged: its MD5 is {found}, that of the official file {md5}; download it again",
            code="file-damaged",
        )
    return raw


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
