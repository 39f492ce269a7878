"""MNIST and Fashion-MNIST from their official idx files."""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainability.data.registry import Request, register
from trainability.data.sources.official import from_files_or_hub, official

if TYPE_CHECKING:
    from torch import Tensor

    from trainability.data.dataset import Dataset, Split


@dataclass(frozen=True)
class _Idx:
    """The place of the official files of an idx data set, their MD5 sums, and the id on the hub."""

    folder: str
    hub: str
    md5: dict[str, str]


_PARTS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX = {
    "mnist": _Idx(
        "MNIST/raw",
        "ylecun/mnist",
        dict(
            zip(
                _PARTS,
                (
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "9fb629c4189551a2d022fa330f9573f3",
                    "ec29112dd5afa0611ce80d1b7f02629c",
                ),
                strict=True,
            )
        ),
    ),
    "fashion-mnist": _Idx(
        "FashionMNIST/raw",
        "zalando-datasets/fashion_mnist",
        dict(
            zip(
                _PARTS,
                (
                    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "25c81989df183df01b3e8a0aad5dffbe",
                    "bef4ecab320f06d8554ea6380940ec79",
                    "bb300cfdad3c16e7a12a480ee83cd310",
                ),
                strict=True,
            )
        ),
    ),
}


@register("mnist", takes=("dir", "hub"), needs=("dir", "hub"))
@register("fashion-mnist", takes=("dir", "hub"), needs=("dir", "hub"))
def load_idx(name: str, request: Request) -> "Dataset":
    """Read 70,000 images of 28 × 28 in ten classes."""
    spec = _IDX[name]

    def read(folder: Path) -> "tuple[Split, Split]":
        from trainability.data.dataset import Split

        images, labels, *test = (_read(folder / spec.folder / f"{part}.gz", spec.md5[part]) for part in _PARTS)
        return Split(images.unsqueeze(1), labels.long()), Split(test[0].unsqueeze(1), test[1].long())

    return from_files_or_hub(name, request, spec.hub, 10, read)


def _read(path: Path, md5: str) -> "Tensor":
    """Read an idx file of unsigned bytes after checking that it is the official one."""
    import torch

    raw = official(path, md5)
    content = gzip.decompress(raw)
    dims = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dims, count=math.prod(shape)).view(
        shape
    )
