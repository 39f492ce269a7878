"""Writing down what a benchmark measured, with the machine and the versions."""

import json
import os
import sys
from pathlib import Path

import torch

from trainability.experiments.environment import describe_environment


def keep(path: Path | None, command: str, **measured: object) -> None:
    if path is not None:
        _write(path, {"command": command, "environment": _environment("cpu"), **measured})


class Rows:
    """What a benchmark finds, printed and written row by row, so that one that is stopped leaves what it had.

    Args:
        path: the file, which is written anew with every row; None for none.
        device: on which it is measured.
        about: what holds for all rows.
    """

    def __init__(self, path: Path | None, device: str, **about: object) -> None:
        self._path = path
        self.rows: list[dict[str, object]] = []
        command = " ".join(["python", *sys.argv])
        self._record = {"command": command, "environment": _environment(device), **about, "rows": self.rows}

    def add(self, row: dict[str, object]) -> None:
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        if self._path is not None:
            _write(self._path, self._record)


def _write(path: Path, record: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")  # a benchmark may be stopped while it writes
    fresh.write_text(json.dumps(record, indent=1) + "\n")
    fresh.replace(path)


def _environment(device: str) -> dict[str, object]:
    found = {"git commit": "unknown", **describe_environment()}
    if commit := os.environ.get("BENCHMARK_COMMIT"):  # of a copy that git does not know
        found["git commit"] = commit
    return found | _accelerator(device)


def _accelerator(device: str) -> dict[str, object]:
    if torch.device(device).type != "cuda":
        return {}
    about = torch.cuda.get_device_properties(device)
    return {
        "accelerator": about.name,
        "accelerator memory": f"{about.total_memory / 2**30:.1f} GiB",
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
