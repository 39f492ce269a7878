"""The conditions of a result besides its settings: versions, machine, commit."""

import os
import platform
import subprocess
import tempfile
from contextlib import suppress
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
        "processor": _processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | _git()


def _processor() -> str:
    """The model of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or "unknown"


def _git() -> dict[str, str]:
    """The commit, and how many files differ from it.

    Git runs programs that a repository's configuration names (``core.fsmonitor``, filters, hooks), and the folder may
    be a stranger's. Finding the commit runs none. The files are then compared from an empty repository of our own that
    borrows the objects and the index, so that the other's configuration is not read at all.
    """
    try:
        commit, top, objects, index = _ask_git(
            *("rev-parse", "--path-format=absolute", "HEAD", "--show-toplevel"),
            *("--git-path", "objects", "--git-path", "index"),
        )
    except (OSError, ValueError, subprocess.SubprocessError):  # no git, no repository, or no commit
        return {}
    found = {"git commit": commit}
    with suppress(OSError, ValueError, subprocess.SubprocessError), tempfile.TemporaryDirectory() as own:
        (Path(own) / "refs").mkdir()
        (Path(own) / "HEAD").write_text(f"{commit}\n")
        borrowed = {"GIT_DIR": own, "GIT_WORK_TREE": top, "GIT_OBJECT_DIRECTORY": objects, "GIT_INDEX_FILE": index}
        changed = _ask_git(
            # A submodule has a configuration of its own; and the person's may start a daemon for the borrower.
            *("-c", "core.fsmonitor=false", "status", "--porcelain", "--ignore-submodules=all"),
            **borrowed,
            GIT_OPTIONAL_LOCKS="0",  # the index is the other's to write
        )
        found["git changed files"] = str(len(changed))
    return found


def _ask_git(*words: str, **environment: str) -> list[str]:
    """The lines that git answers."""
    return subprocess.run(
        ["git", *words],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.splitlines()
