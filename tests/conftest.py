"""One thread for every test: two processes with two threads each stall one another."""

import shutil
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
collect_ignore = ["accelerator.py", "accelerator_checks.py"]  # importing them changes the whole process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent.parent
    reasons = {
        "browser": None if browser() else "no Chromium here; install Debian's chromium package or Chrome",
        "gpu": None if torch.cuda.is_available() else "no CUDA device here",
        "real_data": None if (root / ".data/MNIST/raw").is_dir() else "the official MNIST files are not under .data",
    }
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name) and reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def browser() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
