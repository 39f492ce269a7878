"""The text of the user's own files that a run used, kept in its folder: a run is not taken up with other code."""

import difflib
import hashlib
import json
from pathlib import Path

import torch

from trainability._references import code_of, file_of, load, source_of
from trainability.data.dataset import Dataset, Split
from trainability.errors import ConfigError
from trainability.experiments.program import Resolve, references
from trainability.experiments.recipe import Recipe
from trainability.introspect.hooks import tensors_in
from trainability.training.files import write_whole
from trainability.training.places import Existing

NAME = "sources.json"
_SHOWN = 8  # lines of a difference


def sources(recipe: Recipe, resolve: Resolve = load) -> dict[str, str]:
    """The text behind every reference of a recipe, by the file it stands in, or by the reference."""
    found = {}
    for reference in references(recipe):
        whole = resolve is load and file_of(reference) is not None
        text = source_of(reference) if whole else code_of(resolve(reference))
        if text is not None:
            found[str(file_of(reference)) if whole else reference] = text
    return found


def fingerprint(data: Dataset) -> dict[str, str]:
    """The number of samples of every part, and a hash of those that are in memory, for data of the user's own."""
    found = {}
    for name, part in (("train", data.train), ("validation", data.val), ("test", data.test)):
        digest = hashlib.blake2b(digest_size=8)
        for nest in (part.inputs, part.targets) if isinstance(part, Split) else ():
            for tensor in tensors_in(nest):
                digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        found[f"data, {name}"] = f"{len(part)} samples, {digest.hexdigest()}"
    return found


def check_sources(folder: Path, now: dict[str, str], existing: Existing) -> None:
    """Compare the user's files with those that a run to be resumed began with.

    Raises:
        ConfigError: one has changed; the message shows the difference.
    """
    kept = folder / NAME
    if existing != "resume" or not kept.is_file():
        return
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for name, text in before.items() if isinstance(before, dict) else ():
        if name in now and isinstance(text, str) and text != now[name]:
            lines = list(difflib.unified_diff(text.splitlines(), now[name].splitlines(), lineterm="", n=0))
            changes = [line for line in lines[2:] if line[:1] in "+-"]
            shown = "\n".join(f"  {line}" for line in changes[:_SHOWN])
            more = f"\n  and {len(changes) - _SHOWN} more lines" if len(changes) > _SHOWN else ""
            raise ConfigError(
                f"{name} has changed since this run began (- then, + now):\n{shown}{more}\nPut it back to go on, or "
                "begin anew with --overwrite or in another folder with --out",
                code="source-changed",
            )


def keep_sources(folder: Path, now: dict[str, str]) -> None:
    """Write the text of the user's files into a folder, unless there is none."""
    if now:
        write_whole({folder / NAME: json.dumps(now, indent=1) + "\n"})
