"""A step of a recipe by built-in names, and of the same experiment by ``file.py:name``, in turns.

Claim: a model, data and a loss of one's own cost no more time per step than those that the package knows by name.

Three trainings of the same networks on MNIST, in one process on one thread: by names; with a model and data of
one's own; and with a loss of one's own as well. Each turn times a hundred steps of all three in a shuffled order; a
ratio is that of one's own to the names within a turn.

    python benchmarks/own.py --data-dir .data [--turns 9] [--seeds 1] [--out results/own.json]
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from records import Rows
from trainability.experiments.build import build_training, open_fabric
from trainability.experiments.program import Program
from trainability.experiments.recipe import Recipe
from trainability.experiments.validation import validated
from trainability.training.runtime import tune_allocator
from trainability.training.trainer import Training

MINE = """
import torch
from torch import nn
from trainability.data import load


def make_model(depth=30, width=100):
    layers, size = [nn.Flatten()], 784
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 10))


def make_data():
    data = load("mnist", DIR)
    return {
        name: (data.inputs(part.inputs), part.targets)
        for name, part in (("train", data.train), ("validation", data.val), ("test", data.test))
    }


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
"""
_STEPS = 100


def trainings(folder: Path, data_dir: Path, seeds: int) -> dict[str, Training]:
    """The three trainings, ready to step."""
    file = folder / "mine.py"
    file.write_text(MINE.replace("DIR", repr(str(data_dir.resolve()))))
    shared = {"seeds": seeds, "epochs": 100, "probes": 0, "engine": {"threads": 1, "compile": "off"}}
    own = {"model": f"{file}:make_model", "data": {"name": f"{file}:make_data"}, **shared}
    recipes = {
        "names": {"data": {"name": "mnist", "dir": str(data_dir)}, "model": {"depth": 30, "width": 100}, **shared},
        "own model and data": own,
        "own model, data and loss": {**own, "loss": f"{file}:loss"},
    }
    found = {}
    for name, content in recipes.items():
        recipe = validated(Recipe, content)
        found[name], _ = build_training([recipe], Program.of(recipe), open_fabric(recipe))
        found[name].prepare()
    return found


def main() -> None:
    """Time the three in turns and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rows = Rows(given.out, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        each = trainings(Path(folder), given.data_dir, given.seeds)
        times: dict[str, list[float]] = {name: [] for name in each}
        order = random.Random(0)
        for turn in range(given.turns + 1):
            for name in order.sample(list(each), len(each)):
                begin = time.perf_counter()
                for _ in range(_STEPS):
                    each[name].step()
                if turn:  # the first one warms up
                    times[name].append((time.perf_counter() - begin) / _STEPS)
    for name, own in times.items():
        ratios = sorted(a / b for a, b in zip(own, times["names"], strict=True))
        rows.add(
            {
                "case": name,
                "seeds": given.seeds,
                "step_ms": round(1e3 * median(own), 3),
                "to_names": round(median(ratios), 3),
                "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
                "execution": each[name].execution["members"],
            }
        )


if __name__ == "__main__":
    main()
