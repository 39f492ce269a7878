"""A folder of images, one folder per class, as a data set in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainability.data.dataset import Split
from trainability.errors import DataError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class FolderOptions:
    """Which images of a folder are taken: their size, how many classes, and how many training images of each."""

    image_size: int = 64
    classes: int | None = None
    per_class: int | None = None

    def __post_init__(self) -> None:
        least = {"image_size": 1, "classes": 2, "per_class": 1}
        for name, value in vars(self).items():
            if value is not None and value < least[name]:
                raise DataError(f"{name} must be at least {least[name]}, not {value}", code="out-of-range")


def folder_options(
    data: str, image_size: int | None, classes: int | None, per_class: int | None
) -> FolderOptions | None:
    """What settings say of a folder; None for another data set, for which they must say nothing.

    Raises:
        DataError: a value that is too small, or one for a data set that is no folder.
    """
    if data == "folder":
        return FolderOptions(image_size or FolderOptions.image_size, classes, per_class)
    if image_size or classes or per_class:
        raise DataError(
            f"image_size, classes and per_class belong to data: folder, not to {data}", code="does-not-apply"
        )
    return None


def read_folder(folder: Path, options: FolderOptions) -> tuple[int, Split, Split | None]:
    """How many classes there are, the training images, and those of ``test`` or ``val`` beside ``train``, if any.

    Training images lie in ``train/CLASS/``, at any depth, or in ``CLASS/`` where there is no folder ``train``. Those of
    ``val`` lie in the same way, or in one folder with a file ``val_annotations.txt`` beside it, as in Tiny ImageNet.
    Classes are in the order of their names. Each image is scaled so that its shorter side has ``image_size`` pixels,
    and its middle is taken.

    Raises:
        DataError: no images, fewer classes than were asked for, or a file that is no image, by its name.
    """
    try:
        root = folder / "train" if (folder / "train").is_dir() else folder
    except OSError as error:  # a name that no file system takes
        raise DataError(f"{str(folder)[:80]!r} cannot be a folder: {error.strerror}", code="no-folder") from error
    if root is folder and (apart := [part for part in ("test", "val") if (folder / part).is_dir()]):
        raise DataError(
            f"{folder} has a folder {apart[0]!r} and none 'train' beside it; put the training images there",
            code="folder-layout",
        )
    if not root.is_dir():
        raise DataError(f"{root} is no folder; it should have one folder of images per class", code="folder-layout")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and next(_images(entry), None))
    if len(names) < 2:
        raise DataError(
            f"{root} should have one folder of images per class, and has {len(names)} with images in it",
            code="folder-layout",
        )
    if options.classes is not None:
        if options.classes > len(names):
            raise DataError(f"{root} has {len(names)} classes, not {options.classes}", code="out-of-range")
        names = names[: options.classes]
    files = [(path, label) for label, name in enumerate(names) for path in _some(root / name, options.per_class)]
    train = _load(files, options.image_size)
    test = next((found for part in ("test", "val") if (found := _held(folder / part, names))), None)
    return len(names), train, _load(test, options.image_size) if test else None


def _held(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
    """Images of these classes in a folder beside ``train``."""
    label = {name: number for number, name in enumerate(names)}
    notes = folder / "val_annotations.txt"
    if notes.is_file():
        try:
            lines = notes.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{notes} cannot be read as UTF-8 ({error})", code="file-unreadable") from None
        rows = [line.split("\t") for line in lines if line]
        if short := next((row for row in rows if len(row) < 2), None):
            raise DataError(
                f"{notes}: the line {short[0]!r} should have a file and a class, with a tab between them",
                code="folder-layout",
            )
        return [(folder / "images" / row[0], label[row[1]]) for row in rows if row[1] in label]
    if not folder.is_dir():
        return []
    found = {name: _some(folder / name, None) if (folder / name).is_dir() else [] for name in names}
    if empty := [name for name, files in found.items() if not files]:
        raise DataError(
            f"{folder} has no images of {len(empty)} of {len(names)} classes, such as {empty[0]!r}",
            code="folder-layout",
        )
    return [(path, label[name]) for name, files in found.items() for path in files]


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES)


def _some(folder: Path, most: int | None) -> list[Path]:
    return list(_images(folder))[:most]


def _load(files: list[tuple[Path, int]], size: int) -> Split:
    try:
        import numpy
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            "a folder of images needs Pillow: pip install 'trainability[images]'", code="missing-extra"
        ) from error
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for number, (path, _) in enumerate(files):
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
                images[number] = _pixels(numpy.asarray(fitted).copy())
        except Exception as error:  # each format's reader meets a broken file in its own way
            raise DataError(
                f"{path} cannot be read as an image ({error}); take it out of the folder", code="file-unreadable"
            ) from error
    return Split(images, torch.tensor([label for _, label in files]))


def _pixels(array: object) -> Tensor:
    return torch.as_tensor(array).movedim(-1, 0)
