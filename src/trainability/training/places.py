"""Folders of results: what may stand in one, and what becomes of one that holds something. Nothing here loads torch."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainability.errors import ConfigError, FolderError
from trainability.training.files import write_whole
from trainability.training.yaml_files import dump_yaml, read_yaml

Existing = Literal["refuse", "resume", "overwrite"]
_REPORT_BYTES = 20 * 10**6
_CHECKPOINT = re.compile(r"step-[0-9]{8,18}-[0-9a-f]{16}\.pt")
_LENGTH = re.compile(r"(networks\.\d+\.)?epochs")
# All that a run or a sweep writes, and what it reads of that.
_OWN = (
    *(
        "recipe.yaml",
        "environment.json",
        "events.jsonl",
        "results.json",
        "report.html",
        "remedies.json",
        "sources.json",
    ),
    *("checkpoints", "stacks", ".lock", "tensorboard", "wandb", "mlflow", "mlflow.db"),
)
# What tells that a folder holds results.
_RESULTS = ("recipe.yaml", "events.jsonl", "results.json", "report.html")
_OWN_MANY = ("checkpoints/*", "study.db*", "worker*.log")


def check_place(folder: Path, existing: Existing) -> None:
    """Find out before training, not after it, whether results can be written; leave nothing behind.

    Raises:
        ConfigError: they cannot.
        FolderError: the folder holds results, and is to be neither resumed nor overwritten; it holds none that could
            be resumed; or a link in it would have results written elsewhere.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()
        check_links(folder)
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"out: {folder} is a link to a place that does not exist; make that place, or choose another folder",
                code="out-not-writable",
            )
        there = next(place for place in [folder.absolute(), *folder.absolute().parents] if place.exists())
    except (OSError, ValueError) as error:  # the latter of a name that no folder can have
        if isinstance(error, ConfigError | FolderError):
            raise
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"out: {folder} cannot be used: {reason}", code="out-not-writable") from None
    if not there.is_dir():
        raise ConfigError(f"out: {there} is a file, not a folder; choose another folder", code="out-not-writable")
    if shutil.disk_usage(there).free < _REPORT_BYTES:
        raise ConfigError(
            f"out: no space is left on the disk of {there}; a report takes {_REPORT_BYTES // 10**6} MB",
            code="out-not-writable",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {there} is not writable by this user; choose another folder", code="out-not-writable")
    check_existing(folder, existing)


def check_existing(folder: Path, existing: Existing) -> None:
    """Raise FolderError where a folder that holds results is neither resumed nor overwritten, or has none to resume."""
    if existing == "resume" and not (folder / "recipe.yaml").exists():
        raise FolderError(f"{folder} holds no run to resume; leave out --resume to begin one", code="nothing-to-resume")
    if existing == "refuse" and any((folder / name).exists() for name in _RESULTS):
        raise FolderError(
            f"{folder} holds results already; go on with --resume, also to more epochs, take them away with "
            "--overwrite, or choose another folder with --out",
            code="folder-in-use",
        )


def clear(folder: Path) -> None:
    """Take away all that a run has written, and nothing else."""
    check_links(folder)
    for stack in sorted((folder / "stacks").glob("*")):
        clear(stack)
        (stack / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            stack.rmdir()
    for path in _own_paths(folder):
        if path.name == ".lock":  # which this process may hold
            continue
        if path.name == "stacks":
            with suppress(OSError):
                path.rmdir()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _own_paths(folder: Path) -> list[Path]:
    return [folder / name for name in _OWN] + [path for pattern in _OWN_MANY for path in folder.glob(pattern)]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; what a dying process left half-written does not count."""
    found = [path for path in (folder / "checkpoints").glob("*.pt") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), path.name), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.name.split("-")[1])


def check_links(folder: Path) -> None:
    """Refuse a folder where a run would read or write something elsewhere; the folder itself may be a link.

    Raises:
        FolderError: one of the names of a run is a link, a second name of a file, or no plain file or folder.
    """
    for path in _own_paths(folder):
        if path.is_symlink():
            raise FolderError(
                f"{path} is a link; remove it, since a run writes nowhere but into its own folder", code="link"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise FolderError(f"{path} is neither a file nor a folder; remove it", code="not-a-file")
        if path.is_file() and path.stat().st_nlink > 1:
            raise FolderError(f"{path} has another name elsewhere; put a copy in its place", code="link")


def keep_recipe(
    folder: Path,
    recipe: Mapping[str, Any],
    environment: Mapping[str, Any],
    free: tuple[str, ...] = (),
    fixed_length: str | None = None,
) -> None:
    """Write ``recipe.yaml`` and ``environment.json``, or find the same recipe there, apart from settings in ``free``.

    One of fewer epochs is replaced by this one, whole, and from then on the folder is one of the longer run: its
    checkpoints say how far it is.

    Raises:
        FolderError: the folder holds a recipe that does not lead to this one; see `held_recipe`.
    """
    check_links(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = held_recipe(folder, recipe, free, fixed_length)
    if held == "none":
        write_whole({folder / "environment.json": json.dumps(dict(environment), indent=1) + "\n"})
    if held != "same":
        write_whole({folder / "recipe.yaml": dump_yaml(recipe)})


def held_recipe(
    folder: Path, recipe: Mapping[str, Any], free: tuple[str, ...] = (), fixed_length: str | None = None
) -> Literal["none", "same", "shorter"]:
    """Compare a recipe with the one that a folder holds: there is none, it is the same, or it is of fewer epochs.

    Args:
        folder: of results.
        recipe: the resolved recipe, or one with ``networks``, the recipes of several.
        free: names, or beginnings of names, of settings that may be others.
        fixed_length: the reason why the number of epochs cannot grow, where it cannot.

    Raises:
        FolderError: it is another recipe, the message says where they differ; or it is of more epochs; or it is of
            fewer, and there is a reason why they cannot grow.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        return "none"
    try:
        there = read_yaml(path, "the recipe")
    except ConfigError as error:
        raise FolderError(
            f"{error}; choose another folder, or begin anew there with --overwrite", code="recipe-damaged"
        ) from None
    differ = [found for found in _differences(there, dict(recipe)) if not found.name.startswith(free)]
    if others := [found for found in differ if not found.is_length]:
        raise FolderError(
            f"{folder} holds another recipe: {'; '.join(map(str, others[:3]))}; choose another folder with --out, or "
            "begin anew there with --overwrite",
            code="other-recipe",
        )
    for found in differ:
        _check_growth(folder, found, fixed_length)
    return "shorter" if differ else "same"


def without_epochs(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stays the same of a recipe, or of those of ``networks``, while its number of epochs grows."""
    networks = recipe.get("networks", [recipe])
    return [{name: value for name, value in network.items() if name != "epochs"} for network in networks]


@dataclass(frozen=True)
class _Difference:
    """A setting that has one value in a recipe that is kept, and another in one that is given."""

    name: str
    kept: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.name} is {self.kept!r} there and {self.given!r} here"

    @property
    def is_length(self) -> bool:
        """True where it is the number of epochs."""
        return bool(_LENGTH.fullmatch(self.name)) and isinstance(self.kept, int) and isinstance(self.given, int)


def _differences(kept: Any, given: Any, name: str = "") -> list[_Difference]:
    if isinstance(kept, dict) and isinstance(given, dict):
        keys = dict.fromkeys([*kept, *given])
        return [d for key in keys for d in _differences(kept.get(key), given.get(key), f"{name}.{key}".strip("."))]
    if _are_mappings(kept) and _are_mappings(given) and len(kept) == len(given):
        pairs = enumerate(zip(kept, given, strict=True))
        return [d for number, pair in pairs for d in _differences(*pair, f"{name}.{number}")]
    return [] if kept == given else [_Difference(name, kept, given)]


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _check_growth(folder: Path, length: _Difference, fixed_length: str | None) -> None:
    """Raise FolderError for a number of epochs that the folder's own cannot grow to."""
    as_it_is = f"go on with it by epochs={length.kept}"
    anew = f"train epochs={length.given} from the start, in another folder with --out or there with --overwrite"
    if fixed_length:
        raise FolderError(
            f"{folder} is of {length.kept} epochs, and their number cannot change: {fixed_length}; {as_it_is}, or "
            f"{anew}",
            code="fixed-length",
        )
    if length.given < length.kept:
        raise FolderError(
            f"{folder} is of {length.kept} epochs, which are more than {length.given}; {as_it_is} or more, or {anew}",
            code="fewer-epochs",
        )
