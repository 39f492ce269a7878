"""What a result depends on besides its settings."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import trainability

_PACKAGES = ("numpy", "lightning-fabric", "optuna", "pytorch-optimizer")


def describe_environment() -> dict[str, Any]:
    """Versions, machine, threads, and the git state of the folder that the program runs in."""
    found: dict[str, Any] = {
        "trainability": trainability.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | _git()


def _git() -> dict[str, str]:
    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10, cwd=Path.cwd()
        ).stdout.strip()

    try:
        return {"git commit": ask("rev-parse", "HEAD"), "git changed files": str(len(ask("status", "-s").splitlines()))}
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return {}
