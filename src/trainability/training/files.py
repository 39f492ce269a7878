"""Files that are whole or not there."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(files: Mapping[Path, str | bytes]) -> None:
    """Write files of one folder, which is made if need be, beside their places; move them there when all are whole.

    Each is whole or as it was before, also when the machine dies. Where writing fails, nothing is left of the attempt.
    """
    folder = next(iter(files)).parent
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    written: dict[Path, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            handle, written[path] = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(written[path], 0o644)
        for path, name in written.items():
            os.replace(name, path)
    except BaseException:
        for name in written.values():
            Path(name).unlink(missing_ok=True)
        with suppress(OSError):
            for made in missing:
                made.rmdir()
        raise
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)  # or the moves might be lost
    finally:
        os.close(opened)


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
