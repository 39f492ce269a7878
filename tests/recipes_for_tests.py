"""A small recipe, a sweep of it, a file of either, and what a run of one leaves in its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainability.experiments.comparison import Comparison
from trainability.experiments.recipe import Recipe
from trainability.experiments.validation import validated
from trainability.training.folder import read_events
from trainability.training.places import checkpoints
from trainability.training.yaml_files import dump_yaml

SMALL = {"model": {"depth": 2, "width": 8}, "epochs": 2, "probes": 1, "seeds": 2, "engine": {"compile": "off"}}
SWEEP = {"parameters": {"optimizer.lr": [0.1, 0.01]}}


def recipe(**changes: object) -> Recipe:
    return validated(Recipe, {**SMALL, **changes})


def write(path: Path, **changes: object) -> Path:
    path.write_text(dump_yaml({**SMALL, **changes}))
    return path


def newest(folder: Path) -> Path:
    return checkpoints(folder)[0]


def last_state(folder: Path) -> dict[str, Any]:
    return torch.load(newest(folder), weights_only=True)


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = last_state(one)["weights"], last_state(other)["weights"]
    assert a.keys() == b.keys()
    for name, value in a.items():  # constants that an activation does not have are kept as NaN
        torch.testing.assert_close(b[name], value, rtol=0, atol=0, equal_nan=True)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def resumed_at(folder: Path) -> int | None:
    """The step at which a run was last taken up again; None where it began anew."""
    found = events(folder, "resumed")
    return found[-1]["step"] if found else None


def untimed(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**result, "step_ms": 0} for result in results]


class StopError(Exception):
    """As if the process had died."""


def stop_at(step: int) -> Callable[[Comparison, int, int], None]:
    def progress(_: Comparison, done: int, total: int) -> None:
        if done == step:
            raise StopError

    return progress
