"""Loading data sets: embedded digits, official files, or the Hugging Face hub."""

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainability.data.cifar import CIFAR, official, read_cifar
from trainability.data.dataset import Dataset, Split, split
from trainability.data.folder import FolderOptions, read_folder
from trainability.errors import ArgumentError, DataError


@dataclass(frozen=True)
class _Idx:
    """Where the official files of an idx data set lie, their MD5 sums, and the id on the hub."""

    folder: str
    hub: str
    md5: dict[str, str]
    classes: int = 10


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

NAMES = ("digits", *_IDX, *CIFAR, "folder")


def check_name(name: str) -> str:
    """Return the name of a data set that there is, or raise ValueError."""
    if name not in NAMES:
        raise ArgumentError(f"there is no data set {name!r}; choose from {', '.join(NAMES)}", code="unknown-choice")
    return name


def load(
    name: str,
    data_dir: Path | str | None = None,
    *,
    hub: bool = False,
    split_seed: int = 0,
    pln: bool = False,
    held_out: int | None = None,
    images: FolderOptions | None = None,
) -> Dataset:
    """Load a data set with a seeded validation split.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 images of 8×8; needs no files), ``"mnist"``, ``"fashion-mnist"``,
            ``"cifar10"``, ``"cifar100"``, or ``"folder"``: images of one's own, in ``DIR/train/CLASS/`` and
            ``DIR/val/CLASS/``; without the second a tenth of the images is kept for testing.
        data_dir: folder of the official files, such as ``DIR/MNIST/raw/train-images-idx3-ubyte.gz`` or
            ``DIR/cifar-10-batches-py/data_batch_1``; checksums are verified.
        hub: take them from the Hugging Face hub instead (needs ``trainability[hub]``).
        split_seed: seed of the validation split, and of the 360 images of digits that are kept for testing.
        pln: per-location normalization of the inputs.
        held_out: how many of the training images are held out for validation: by default 10,000, 360 of digits,
            and a tenth of a folder.
        images: of a folder: the size of its images, how many classes, and how many training images of each.

    Raises:
        DataError: an unknown name, or a file that is missing or damaged.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.train), len(digits.val), len(digits.test)
    ((1, 8, 8), 1077, 360, 360)
    """
    if images is not None and name != "folder":
        raise DataError(
            f"image_size, classes and per_class belong to data: folder, not to {name}", code="does-not-apply"
        )
    if name == "folder":
        return replace(_folder(data_dir, hub, split_seed, held_out, images or FolderOptions()), pln=pln)
    return replace(_load(name, data_dir, hub, split_seed, held_out), pln=pln)


def _folder(data_dir: Path | str | None, hub: bool, seed: int, held_out: int | None, options: FolderOptions) -> Dataset:
    if hub or data_dir is None:
        raise DataError(
            "data: folder needs the folder itself (--data-dir DIR, in a recipe data.dir), and no hub",
            code="missing-setting",
        )
    classes, train, test = read_folder(Path(data_dir), options)
    held_out = len(train) // 10 if held_out is None else held_out
    tested = 0 if test is not None else max(1, len(train) // 10)
    source = f"{data_dir}" + ("" if test else f", of whose training images {tested} are kept for testing")
    return split("folder", classes, train, test, held_out, source, seed, tested=tested)


def _load(name: str, data_dir: Path | str | None, hub: bool, split_seed: int, held_out: int | None) -> Dataset:
    if name == "digits" and hub:
        raise DataError("digits comes with scikit-learn and not from the hub; leave out --hub", code="does-not-apply")
    if name == "digits":
        return _digits(split_seed, 360 if held_out is None else held_out)
    spec = _IDX.get(name) or CIFAR.get(name)
    if spec is None:
        raise DataError(f"there is no data set {name!r}; choose from {', '.join(NAMES)}", code="unknown-choice")
    held_out = 10_000 if held_out is None else held_out
    if hub:
        train, test = _from_hub(spec.hub)
        return split(name, spec.classes, train, test, held_out, f"hub:{spec.hub}", split_seed)
    if data_dir is None:
        raise DataError(
            f"{name} needs its official files: name their folder (--data-dir DIR, in a recipe data.dir), take them "
            "from the hub (--hub, in a recipe data.hub), or use digits, which needs none",
            code="missing-setting",
        )
    if isinstance(spec, _Idx):
        folder = Path(data_dir) / spec.folder
        train_x, train_y, test_x, test_y = (_idx(folder / f"{part}.gz", spec.md5[part]) for part in _PARTS)
        train = Split(train_x.unsqueeze(1), train_y.long())
        test = Split(test_x.unsqueeze(1), test_y.long())
    else:
        train, test = read_cifar(spec, Path(data_dir))
    return split(name, spec.classes, train, test, held_out, "files", split_seed)


def _digits(seed: int, held_out: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits comes with scikit-learn: pip install 'trainability[experiments]'", code="missing-extra"
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # 0 to 16 in the source
    pool = Split(images, torch.from_numpy(bunch.target).long())
    return split("digits", 10, pool, None, held_out, "scikit-learn", seed, tested=360)


def _idx(path: Path, md5: str) -> Tensor:
    """Read an idx file of unsigned bytes after checking that it is the official one."""
    raw = official(path, md5)
    content = gzip.decompress(raw)
    dims = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dims, count=math.prod(shape)).view(
        shape
    )


def _from_hub(identifier: str) -> tuple[Split, Split]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "--hub needs the datasets library: pip install 'trainability[hub]'", code="missing-extra"
        ) from error
    try:
        both = datasets.load_dataset(identifier)
    except Exception as error:  # no network, no such data set, a full cache: the library raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{identifier} could not be loaded from the hub: {reason}", code="hub") from error
    return _split_of(both["train"]), _split_of(both["test"])


def _split_of(rows: Any) -> Split:
    rows = rows.with_format("torch")
    images = torch.stack([image.to(torch.uint8) for image in rows["img" if "img" in rows.column_names else "image"]])
    label = "fine_label" if "fine_label" in rows.column_names else "label"
    return Split(images if images.dim() == 4 else images.unsqueeze(1), torch.as_tensor(rows[label][:]).long())
