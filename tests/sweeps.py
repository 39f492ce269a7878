"""A sweep of eight trials, a file of it, and its database."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trainability.experiments.recipe import Recipe
from trainability.experiments.study import Row
from trainability.experiments.validation import validated
from trainability.training.yaml_files import dump_yaml

PARAMETERS = {"remedies.lbe.alpha": [0.3, 0.6], "remedies.lbe.beta": [0.1, 0.2], "model.depth": [2, 3]}
SWEEP = {
    "model": {"depth": 3, "width": 12},
    "remedies": "he+lbe",
    "epochs": 2,
    "seeds": 2,
    "probes": 1,
    "sweep": {"parameters": PARAMETERS, "stack": 4, "heartbeat": 1},
}


def recipe(**changes: object) -> Recipe:
    return validated(Recipe, {**SWEEP, **changes})


def write(path: Path, **changes: object) -> Path:
    path.write_text(dump_yaml({**SWEEP, **changes}))
    return path


def url(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'study.db'}"


def finished_once(found: Sequence[Row], expected: int) -> None:
    assert len(found) == expected
    assert max(Counter(repr(sorted(row.params.items())) for row in found).values()) == 1
