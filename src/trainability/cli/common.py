"""What the commands share: refusals, durations, and checks that come before hours of work."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer
import yaml

from trainability.errors import ConfigError
from trainability.experiments.validation import load_yaml
from trainability.training.addresses import without_password
from trainability.training.folder import check_links

_REPORT_BYTES = 20 * 10**6


def split(text: str | None) -> list[str] | None:
    """The entries of a list with commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def check_device(name: str) -> None:
    """Raise ConfigError for a device that is unknown or not there."""
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: {name!r} cannot be used here: choose cpu, cuda or mps", code="unknown-choice")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"device: {name!r} cannot be used here ({reason}); take cpu", code="device") from None


def check_out(out: Path) -> None:
    """Find out before training, not after it, whether the report can be written; leave nothing behind.

    Raises:
        ConfigError: it cannot.
        FolderError: it would be written elsewhere, by a link in the folder.
    """
    try:
        check_links(out)
        if out.is_symlink() and not out.exists():
            raise ConfigError(f"out: {out} is a link to a place that is not there", code="out-not-writable")
        existing = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be used: {error.strerror}", code="out-not-writable") from None
    if not existing.is_dir():
        raise ConfigError(f"out: {existing} is a file, not a folder", code="out-not-writable")
    if shutil.disk_usage(existing).free < _REPORT_BYTES:
        raise ConfigError(
            f"out: no space is left on the disk of {existing}; a report takes {_REPORT_BYTES // 10**6} MB",
            code="out-not-writable",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {existing} cannot be written to", code="out-not-writable")


def is_first() -> bool:
    """Whether this process is the first of those that share a run, and so the one that speaks."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def fail(sentence: str) -> NoReturn:
    """Say one sentence on standard error and end with exit code 2."""
    if is_first():
        print(f"trainability: {printable(sentence)}", file=sys.stderr)
    raise typer.Exit(2)


def printable(text: str) -> str:
    """The text in one line, with what would act on a terminal written out, as a recipe of others may hold it."""
    lines = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in lines)


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    return "…" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def changes(settings: list[str]) -> dict[str, Any]:
    """``optimizer.lr=0.01`` as a name and a value, which is read as YAML."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"--set {without_password(name)}: write it as name=value, such as optimizer.lr=0.01",
                code="setting-syntax",
            )
        try:
            found[name] = load_yaml(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {name}: its value is not valid YAML", code="yaml") from None
    return found
