"""Whether the files that a command leaves are whole."""

import io
import json
from pathlib import Path

import torch
import yaml

from .core import Fault


def check_whole(folder: Path, apart: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Raise `Fault` for a file that is half-written, but for those named, which were so before."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in apart:
            try:
                _read(path)
            except Exception as error:
                raise Fault("half-written", f"a {path.suffix or path.name} file: {type(error).__name__}") from error


def _read(path: Path) -> None:
    if path.name.startswith(".") and path.name != ".lock":
        raise ValueError("a temporary file was left")
    content = path.read_bytes()
    match path.suffix:
        case ".json":
            json.loads(content)
        case ".jsonl":
            [json.loads(line) for line in content.splitlines()]
        case ".yaml":
            yaml.safe_load(content)
        case ".pt":
            torch.load(io.BytesIO(content), weights_only=True)
        case ".html":
            if not content.rstrip().endswith(b"</html>"):
                raise ValueError("the page has no end")
