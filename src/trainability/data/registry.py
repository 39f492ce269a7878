"""Data sets by name: where their samples come from, and the settings that each takes.

A new data set is one file: a function that loads it, registered by its name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainability._lazy import Registry
from trainability.errors import DataError

if TYPE_CHECKING:
    from trainability.data.dataset import Dataset


@dataclass(frozen=True)
class Request:
    """Settings of a data set, with None for what is left to it.

    Args:
        dir: folder of the official files, or of one's own images
        hub: take it from the Hugging Face hub instead
        held_out: training samples held out for validation; 10000 unless given, 360 of digits, a tenth of a folder
        image_size: of a folder: pixels of each side, 64 unless given
        classes: of a folder: the first so many classes
        per_class: of a folder: so many training images of each class
        split_seed: seed of the validation split, and of test samples where a data set has none of its own
    """

    dir: Path | None = None
    hub: bool = False
    held_out: int | None = None
    image_size: int | None = None
    classes: int | None = None
    per_class: int | None = None
    split_seed: int = 0


Loader = Callable[[str, Request], "Dataset"]
AnyLoader = TypeVar("AnyLoader", bound=Loader)


@dataclass(frozen=True)
class _Source:
    load: Loader
    takes: tuple[str, ...]
    needs: tuple[str, ...]


_registered: Registry[_Source] = Registry("data set", "trainability.data.sources", DataError)


def register(
    name: str, *, takes: tuple[str, ...] = (), needs: tuple[str, ...] = ()
) -> Callable[[AnyLoader], AnyLoader]:
    """Make a data set known by its name; its module is imported when settings are checked, so it loads torch later.

    Args:
        name: as recipes and the command line have it.
        takes: the settings of a `Request` that are for it, apart from ``held_out``.
        needs: settings of which one has to be given.
    """

    def keep(load: AnyLoader) -> AnyLoader:
        _registered[name] = _Source(load, takes, needs)
        return load

    return keep


def names() -> tuple[str, ...]:
    """The names of all data sets."""
    return _registered.names()


def check(name: str, request: Request) -> None:
    """Raise DataError for an unknown name, or settings that the data set of that name does not take."""
    source = _registered.find(name)
    for setting in ("dir", "hub", "image_size", "classes", "per_class"):
        if getattr(request, setting) and setting not in source.takes:
            raise DataError(f"data.{setting} does not apply to {name}; leave it out", code="does-not-apply")
    for setting, least in (("image_size", 1), ("classes", 2), ("per_class", 1), ("held_out", 0)):
        value = getattr(request, setting)
        if value is not None and value < least:
            raise DataError(f"data.{setting} is {value}; it must be at least {least}", code="out-of-range")
    if source.needs and not any(getattr(request, setting) for setting in source.needs):
        ways = {
            "dir": "name the folder of its files with data.dir=DIR",
            "hub": "take it from the hub with data.hub=true",
        }
        raise DataError(
            f"{name} comes from files: {' or '.join(ways[setting] for setting in source.needs)}; digits needs none",
            code="missing-setting",
        )


def load(
    name: str,
    dir: Path | str | None = None,
    *,
    hub: bool = False,
    held_out: int | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    per_class: int | None = None,
    pln: bool = False,
    split_seed: int = 0,
) -> "Dataset":
    """Load a data set with a seeded validation split.

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 images of 8×8; needs no files), ``"mnist"``, ``"fashion-mnist"``,
            ``"cifar10"``, ``"cifar100"``, or ``"folder"``: images of one's own, in ``DIR/train/CLASS/`` and
            ``DIR/val/CLASS/``; without the second a tenth of the images is kept for testing.
        dir: folder of the official files, such as ``DIR/MNIST/raw/train-images-idx3-ubyte.gz`` or
            ``DIR/cifar-10-batches-py/data_batch_1``; checksums are verified.
        hub: take them from the Hugging Face hub instead (needs ``trainability[hub]``).
        held_out: training images held out for validation: by default 10,000, 360 of digits, and a tenth of a folder.
        image_size: of a folder, pixels of each side.
        classes: of a folder, the first so many classes.
        per_class: of a folder, so many training images of each class.
        pln: per-location normalization of the inputs.
        split_seed: seed of the validation split, and of the 360 images of digits that are kept for testing.

    Raises:
        DataError: an unknown name, a setting that is not for this data set, or a file that is missing or damaged.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.train), len(digits.val), len(digits.test)
    ((1, 8, 8), 1077, 360, 360)
    """
    folder = None if dir is None else Path(dir)
    request = Request(folder, hub, held_out, image_size, classes, per_class, split_seed)
    check(name, request)
    return replace(_registered[name].load(name, request), pln=pln)
