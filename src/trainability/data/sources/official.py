"""Official files, verified by their published checksums, and the same data sets on the Hugging Face hub."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainability.data.registry import Request
from trainability.errors import DataError

if TYPE_CHECKING:
    from trainability.data.dataset import Dataset, Split

_HELD_OUT = 10_000


def from_files_or_hub(
    name: str, request: Request, hub: str, classes: int, read: "Callable[[Path], tuple[Split, Split]]"
) -> "Dataset":
    """Take training and test images from the folder of their official files, or from the hub."""
    from trainability.data.dataset import split

    folder = None if request.hub else request.dir
    (train, test), source = (_from_hub(hub), f"hub:{hub}") if folder is None else (read(folder), "files")
    held_out = _HELD_OUT if request.held_out is None else request.held_out
    return split(name, classes, train, test, held_out, source, request.split_seed)


def official(path: Path, md5: str) -> bytes:
    """The bytes of a file whose MD5 sum is the published one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; put the official file there, or take the data from the hub with data.hub=true",
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


def _from_hub(identifier: str) -> "tuple[Split, Split]":
    """Training and test images of a data set on the hub."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data.hub needs the datasets library: pip install 'trainability[hub]'", code="missing-extra"
        ) from error
    try:
        both = datasets.load_dataset(identifier)
    except Exception as error:  # no network, no such data set, a full cache: the library raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{identifier} could not be loaded from the hub: {reason}", code="hub") from error
    return _split_of(both["train"]), _split_of(both["test"])


def _split_of(rows: Any) -> "Split":
    import torch

    from trainability.data.dataset import Split

    rows = rows.with_format("torch")
    images = torch.stack([image.to(torch.uint8) for image in rows["img" if "img" in rows.column_names else "image"]])
    label = "fine_label" if "fine_label" in rows.column_names else "label"
    return Split(images if images.dim() == 4 else images.unsqueeze(1), torch.as_tensor(rows[label][:]).long())
