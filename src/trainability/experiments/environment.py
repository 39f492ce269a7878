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
    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10, cwd=Path.cwd()
        ).stdout.strip()

    try:
        return {"git commit": ask("rev-parse", "HEAD"), "git changed files": str(len(ask("status", "-s").splitlines()))}
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return {}
