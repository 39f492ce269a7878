"""`compare`: one architecture, one data set, several remedies trained side by side."""

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

import trainability
from trainability.data import Dataset
from trainability.data.augment import Augmentation
from trainability.experiments.arms import ARMS
from trainability.experiments.config import CompareConfig
from trainability.lbe import LBE
from trainability.models import fnn
from trainability.remedies import apply_
from trainability.training.run import Record, Run


@dataclass
class Comparison:
    """The settings and the records of a comparison, complete or interrupted."""

    config: CompareConfig
    data: dict[str, Any]
    environment: dict[str, Any]
    records: list[Record]
    chance: float
    interrupted: bool = False
    seconds: float = 0.0
    epochs_total: int = 0
    epochs_done: int = 0
    _begin: float = field(default_factory=time.monotonic, repr=False)

    def seconds_left(self) -> float | None:
        """Time left at the speed so far."""
        if not self.epochs_done:
            return None
        elapsed = time.monotonic() - self._begin
        return elapsed / self.epochs_done * (self.epochs_total - self.epochs_done)

    def cells(self) -> Iterator[tuple[int, float, dict[str, list[Record]]]]:
        """Yield depth, learning rate and the records per remedy that have a result."""
        for depth, lr in product(self.config.depth, self.config.lr):
            here = {
                name: [r for r in self.records if (r.remedy, r.depth, r.lr) == (name, depth, lr) and r.accuracy]
                for name in self.config.remedies
            }
            yield depth, lr, {name: runs for name, runs in here.items() if runs}

    def to_json(self) -> dict[str, Any]:
        """Return the object of ``--json``: ``config`` and ``results``, one flat object per run."""
        return {
            "config": self.config.model_dump(mode="json"),
            "data": self.data,
            "environment": self.environment,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 1),
            "results": [record.result() for record in self.records],
        }


def compare(
    config: CompareConfig,
    data: Dataset,
    *,
    environment: dict[str, Any] | None = None,
    progress: Callable[[Comparison], None] = lambda _: None,
) -> Comparison:
    """Train every remedy on every depth, learning rate and seed.

    For each depth, learning rate and seed the remedies take turns, an epoch each, from the same seed: the same
    initial weights where the initialisation is the same, and the same batches. An interrupt (Ctrl-C) ends the training
    and returns what there is.
    """
    jobs = list(product(config.depth, config.lr, range(config.seeds)))
    records = [Record(name, depth, lr, seed) for depth, lr, seed in jobs for name in config.remedies]
    comparison = Comparison(
        config,
        data.describe(),
        {**describe_environment(), **(environment or {})},
        records,
        chance=100 * float(torch.bincount(data.test.labels).max()) / len(data.test),
        epochs_total=config.epochs * len(records),
    )
    data = data.to(config.device)
    try:
        for start in range(0, len(records), len(config.remedies)):
            _side_by_side(
                [_run(r, config, data) for r in records[start : start + len(config.remedies)]],
                comparison,
                progress,
            )
    except KeyboardInterrupt:
        comparison.interrupted = True
    comparison.seconds = time.monotonic() - comparison._begin
    return comparison


def _run(record: Record, config: CompareConfig, data: Dataset) -> Run:
    arm = ARMS[record.remedy]
    torch.manual_seed(record.seed)
    model = fnn(torch.Size(data.shape).numel(), record.depth, config.width, data.classes, **arm.model)
    if arm.init:
        apply_(model, arm.init)
    model.to(config.device)
    return Run(
        record,
        model,
        data,
        lbe=LBE(model, alpha=config.alpha, beta=config.beta, alpha_min=config.alpha_min) if arm.lbe else None,
        lr=record.lr,
        batch_size=config.batch_size,
        epochs=config.epochs,
        augmentation=Augmentation() if config.augment else None,
    )


def _side_by_side(runs: list[Run], comparison: Comparison, progress: Callable[[Comparison], None]) -> None:
    try:
        for _ in range(comparison.config.epochs):
            for run in runs:
                if run.record.status != "diverged":
                    run.epoch()
                comparison.epochs_done += 1
                progress(comparison)
    except KeyboardInterrupt:
        for run in runs:
            run.finish("interrupted")
        raise
    for run in runs:
        run.finish("done")
    progress(comparison)


def describe_environment() -> dict[str, Any]:
    """What a result depends on besides the settings."""
    return {
        "trainability": trainability.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
