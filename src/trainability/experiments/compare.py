"""`compare`: one architecture, one data set, several remedies trained side by side."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from trainability.data import Dataset
from trainability.data.augment import usual_augmentation
from trainability.errors import ConfigError, TrainabilityError
from trainability.experiments.arms import Arm, arm
from trainability.experiments.config import CompareConfig
from trainability.experiments.environment import describe_environment
from trainability.models import cnn, fnn, resnet
from trainability.remedies import DKS, IC, TAT, Remedy, Residual, apply_
from trainability.tasks import Task, task
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.devices import fabric_on
from trainability.training.history import History
from trainability.training.trainer import Training


@dataclass
class Comparison:
    """The settings and the histories of a comparison, complete or interrupted."""

    config: CompareConfig
    data: dict[str, Any]
    environment: dict[str, Any]
    histories: list[History]
    task: Task
    chance: float | None
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

    def cells(self) -> Iterator[tuple[int, float, dict[str, list[History]]]]:
        """Yield depth, learning rate and the histories per remedy that have a result."""
        for depth, lr in product(self.config.depth, self.config.lr):
            here = {
                name: [r for r in self.histories if (r.remedy, r.depth, r.lr) == (name, depth, lr) and r.scores]
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
            "results": [history.result() for history in self.histories],
        }


def compare(
    config: CompareConfig,
    data: Dataset,
    *,
    environment: dict[str, Any] | None = None,
    progress: Callable[[Comparison], None] = lambda _: None,
) -> Comparison:
    """Train every remedy on every depth, learning rate and seed.

    Raises ConfigError, before anything is trained, for a remedy that one of the networks cannot take.

    For each depth the remedies take turns, an epoch each; all seeds and learning rates of a remedy train at once, as a
    stack. A seed means the same initial weights where the initialization is the same, and the same batches. An
    interrupt (Ctrl-C) ends the training and returns what there is.
    """
    check_remedies(config, data)
    scored = task("classification")
    histories = [
        History(name, depth, lr, seed)
        for depth, lr, seed, name in product(config.depth, config.lr, range(config.seeds), config.remedies)
    ]
    comparison = Comparison(
        config,
        data.describe(),
        {**describe_environment(), **(environment or {})},
        histories,
        task=scored,
        chance=scored.chance.of(data.test.labels) if scored.chance else None,
        epochs_total=config.epochs * len(histories),
    )
    try:
        for depth in config.depth:
            arms = {name: [r for r in histories if (r.depth, r.remedy) == (depth, name)] for name in config.remedies}
            _side_by_side([_training(stack, config, data) for stack in arms.values()], comparison, progress)
    except KeyboardInterrupt:
        comparison.interrupted = True
    comparison.seconds = time.monotonic() - comparison._begin
    return comparison


def _training(histories: list[History], config: CompareConfig, data: Dataset) -> Training:
    """All seeds and learning rates of one remedy at one depth, as one stack."""
    side = arm(histories[0].remedy)
    strength = Strength(config.alpha, config.beta, config.alpha_min) if side.lbe else None
    training = Training(
        [_model(history, side, config, data) for history in histories],
        [Member(history.seed, history.lr, lbe=strength) for history in histories],
        histories,
        data,
        TrainingConfig(
            config.epochs,
            config.batch_size,
            augmentation=usual_augmentation(data.name) if config.augment else None,
            convention=config.convention,
        ),
        fabric_on(config.device),
    )
    training.prepare()
    return training


def _model(history: History, side: Arm, config: CompareConfig, data: Dataset) -> nn.Module:
    torch.manual_seed(history.seed)
    return _built(history.depth, side, config, data)


def _tuned(remedy: Remedy, config: CompareConfig) -> Remedy:
    """The remedy with the settings of the comparison."""
    if isinstance(remedy, TAT):
        return replace(remedy, eta=config.eta, tau=config.tau)
    if isinstance(remedy, IC):
        return replace(remedy, keep=config.keep)
    return replace(remedy, zeta=config.zeta) if isinstance(remedy, DKS) else remedy


def check_remedies(config: CompareConfig, data: Dataset) -> None:
    """Raise ConfigError for a remedy that one of the networks cannot take, before anything is trained."""
    for name, depth in product(config.remedies, config.depth):
        try:
            _built(depth, arm(name), config, data)
        except (TrainabilityError, ValueError) as error:
            message = f"the remedy {name} cannot be had at depth {depth}: {error}"
            raise ConfigError(message, code=getattr(error, "code", None)) from error


def _built(depth: int, side: Arm, config: CompareConfig, data: Dataset) -> nn.Module:
    """The network of one side with its remedies, and weights from the random state."""
    model = _plain(depth, side, config, data)
    own = [r for r in side.remedies if not (config.model == "resnet" and isinstance(r, Residual))]  # options of it
    for remedy in own:
        apply_(model, _tuned(remedy, config), inputs=torch.zeros(2, *data.shape))
    return model


def _plain(depth: int, side: Arm, config: CompareConfig, data: Dataset) -> nn.Module:
    options: dict[str, Any] = {"nonlinearity": config.nonlinearity}
    norm = bool(side.model.get("norm"))
    if config.model == "resnet":
        own = {key: side.model[key] for key in ("unit", "scale") if key in side.model}
        norm = norm or "unit" in own
        options |= {"in_channels": data.shape[0], "width": config.width, "norm": norm, "keep": config.keep, **own}
        options["convolutions"] = config.convolutions
        return resnet(depth, data.classes, **options)
    options["batchnorm"] = norm
    if config.model == "cnn":
        channels, height, width = data.shape
        shape = (channels, height, width)
        return cnn(shape, depth, config.width, data.classes, strides=config.strides, head=config.width, **options)
    return fnn(torch.Size(data.shape).numel(), depth, config.width, data.classes, **options)


def _side_by_side(trainings: list[Training], comparison: Comparison, progress: Callable[[Comparison], None]) -> None:
    try:
        for _ in range(comparison.config.epochs):
            for training in trainings:
                training.epoch()
                comparison.epochs_done += len(training.histories)
                progress(comparison)
    except KeyboardInterrupt:
        for training in trainings:
            training.finish("interrupted")
        raise
    for training in trainings:
        training.finish("done")
    progress(comparison)
