"""A small recipe, a sweep of it, and a file of either."""

from pathlib import Path

import yaml

from trainability.experiments.recipe import Recipe
from trainability.experiments.validation import validated

SMALL = {"model": {"depth": 2, "width": 8}, "epochs": 2, "probes": 1, "seeds": 2, "engine": {"compile": "off"}}
SWEEP = {"parameters": {"optimizer.lr": [0.1, 0.01]}}


def recipe(**changes: object) -> Recipe:
    return validated(Recipe, {**SMALL, **changes})


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path
