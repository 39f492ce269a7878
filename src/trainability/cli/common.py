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
from trainability.experiments.validate import load_yaml

_REPORT_BYTES = 20 * 10**6


def split(text: str | None) -> list[str] | None:
    """The entries of a list with commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def check_device(name: str) -> None:
    """Raise ConfigError for a device that is unknown or not there."""
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: {name!r} cannot be used here: choose cpu, cuda or mps")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"device: {name!r} cannot be used here ({reason}); take cpu") from None


def check_out(out: Path) -> None:
    """Find out before training, not after it, whether the report can be written; leave nothing behind."""
    try:
        existing = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be used: {error.strerror}") from None
    if not existing.is_dir():
        raise ConfigError(f"out: {existing} is a file, not a folder")
    if shutil.disk_usage(existing).free < _REPORT_BYTES:
        raise ConfigError(
            f"out: no space is left on the disk of {existing}; a report takes {_REPORT_BYTES // 10**6} MB"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {existing} cannot be written to")


def is_first() -> bool:
    """Whether this process is the first of those that share a run, and so the one that speaks."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def fail(sentence: str) -> NoReturn:
    """Say one sentence on standard error and end with exit code 2."""
    if is_first():
        print(f"trainability: {sentence}", file=sys.stderr)
    raise typer.Exit(2)


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    return "…" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def changes(settings: list[str]) -> dict[str, Any]:
    """``optimizer.lr=0.01`` as a name and a value, which is read as YAML."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: write it as name=value, such as optimizer.lr=0.01")
        try:
            found[name] = load_yaml(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: its value is not valid YAML") from None
    return found
