"""A folder of images, one folder per class, as a data set in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainability.data.registry import Request, register
from trainability.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from trainability.data.dataset import Dataset, Split

_SIZE = 64  # pixels of each side
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


@register("folder", takes=("dir", "image_size", "classes", "per_class"), needs=("dir",))
def load_folder(name: str, request: Request) -> "Dataset":
    """Read a folder of images; without one for testing a tenth of the images is kept for that."""
    from trainability.data.dataset import split

    assert request.dir is not None
    classes, train, test = read_folder(request.dir, request.image_size or _SIZE, request.classes, request.per_class)
    held_out = len(train) // 10 if request.held_out is None else request.held_out
    tested = 0 if test is not None else max(1, len(train) // 10)
    source = f"{request.dir}" + ("" if test else f", of whose training images {tested} are kept for testing")
    return split(name, classes, train, test, held_out, source, request.split_seed, tested=tested)


def read_folder(
    folder: Path, size: int = _SIZE, most_classes: int | None = None, per_class: int | None = None
) -> "tuple[int, Split, Split | None]":
    """Read the number of classes, the training images, and those of ``test`` or ``val`` beside ``train``, if any.

    Training images lie in ``train/CLASS/``, at any depth, or in ``CLASS/`` where there is no folder ``train``. Those of
    ``val`` lie in the same way, or in one folder with a file ``val_annotations.txt`` beside it, as in Tiny ImageNet.
    Classes are in the order of their names. Each image is scaled so that its shorter side has ``size`` pixels,
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
    if most_classes is not None:
        if most_classes > len(names):
            raise DataError(f"{root} has {len(names)} classes, not {most_classes}", code="out-of-range")
        names = names[:most_classes]
    files = [(path, label) for label, name in enumerate(names) for path in _some(root / name, per_class)]
    train = _load(files, size)
    test = next((found for part in ("test", "val") if (found := _held(folder / part, names))), None)
    return len(names), train, _load(test, size) if test else None


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


def _load(files: list[tuple[Path, int]], size: int) -> "Split":
    try:
        import numpy
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            "a folder of images needs Pillow: pip install 'trainability[images]'", code="missing-extra"
        ) from error
    import psutil
    import torch

    from trainability.data.dataset import Split

    if (needed := 3 * size * size * len(files)) > psutil.virtual_memory().available:
        raise DataError(
            f"{len(files)} images of {size} × {size} take {needed / 1e9:.1f} GB, which are not free; take smaller or "
            "fewer ones with data.image_size, data.classes or data.per_class",
            code="memory",
        )
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


def _pixels(array: object) -> "Tensor":
    import torch

    return torch.as_tensor(array).movedim(-1, 0)
