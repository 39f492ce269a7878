"""`sweep`: a worker that trains the trials of a study, as many at a time as fit in a stack."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.study import Study
from optuna.trial import Trial, TrialState

from trainability.errors import ConfigError
from trainability.experiments.axes import Range
from trainability.experiments.build import architecture_key, build_training, member_bytes
from trainability.experiments.program import Program
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import claim, fail_lost, heartbeat, refill, total_trials, value_of
from trainability.stack.memory import members_that_fit
from trainability.training.history import History
from trainability.training.trainer import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Progress:
    """The progress of a study."""

    total: int
    finished: int
    running: int
    best: float | None
    seconds_left: float | None


def work(
    recipe: Recipe,
    study: Study,
    program: Program,
    fabric: "Fabric",
    *,
    progress: Callable[[Training | None], None] = lambda _: None,
    poll: float = 1.0,
    workers: int = 1,
) -> None:
    """Train trials, as many at a time as fit in a stack, until the study has no more; several workers may do so.

    Raises:
        ConfigError: not even one trial fits in memory.
    """
    assert recipe.sweep is not None
    most = capacity(recipe, program, fabric.device, workers)
    while True:
        fail_lost(study, 3 * recipe.sweep.heartbeat)
        refill(study, recipe)
        trials = claim(study, recipe, most)
        if not trials:
            if not any(t.state == TrialState.RUNNING for t in study.get_trials(deepcopy=False)):
                return
            progress(None)
            time.sleep(poll)  # another worker may die, and its trials are then ours
            continue
        with heartbeat(study, trials, recipe.sweep.heartbeat):
            try:
                for group in _by_architecture(recipe, trials):
                    _run(recipe, study, group, program, fabric, progress)
            except KeyboardInterrupt:
                _give_back(study, trials)
                raise


def _give_back(study: Study, trials: Sequence[Trial]) -> None:
    """Leave unfinished trials to others; that is no failure of theirs."""
    for trial in trials:
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr("returned", True)
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def capacity(recipe: Recipe, program: Program, device: torch.device, workers: int = 1) -> int:
    """The number of trials that make one stack, where some workers share the memory.

    Raises:
        ConfigError: not even one trial fits, or a batch size is larger than the training set.
    """
    assert recipe.sweep is not None
    largest = recipe
    for name, values in recipe.sweep.parameters.items():  # the largest network decides
        if name in ("model.depth", "model.width", "batch_size") and not isinstance(values, Range):
            largest = largest.with_values({name: max(v for v in values if not isinstance(v, str))})
    seeds = len(recipe.seeds)
    per_member = member_bytes(largest, program, device)
    fit = members_that_fit(workers * per_member, device)
    if fit < seeds:
        raise ConfigError(
            f"a trial of {seeds} seeds needs about {seeds * per_member / 1e9:.1f} GB, and {fit} networks would fit: "
            "take fewer seeds or smaller batches",
            code="memory",
        )
    return max(1, min(recipe.sweep.stack, fit) // seeds)


def _by_architecture(recipe: Recipe, trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(architecture_key(recipe.with_values(trial.params)), []).append(trial)
    # Neighbors of the same settings share an optimizer.
    settings = ("optimizer.lr", "optimizer.weight_decay")
    return [sorted(group, key=lambda t: [t.params.get(name, 0) for name in settings]) for group in groups.values()]


def _run(
    recipe: Recipe,
    study: Study,
    trials: Sequence[Trial],
    program: Program,
    fabric: "Fabric",
    progress: Callable[[Training | None], None],
) -> None:
    """Train trials of one architecture as one stack and tell the study how each did."""
    training, _ = build_training([recipe.with_values(t.params) for t in trials], program, fabric)
    training.prepare()
    while not training.done:
        training.advance()
        progress(training)
    training.finish("done")
    seeds, metric = len(recipe.seeds), recipe.task.task().metric
    for number, trial in enumerate(trials):
        histories = training.histories[number * seeds : (number + 1) * seeds]
        # Taken for dead, after a pause of the machine for example, its trials are another worker's now.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr("runs", [_result(history, trial.params) for history in histories])
            values = [value_of(history.result(), metric) for history in histories]
            study.tell(trial, mean(values), skip_if_finished=True)


def _result(history: History, params: dict[str, Any]) -> dict[str, Any]:
    return {**history.result(), "params": dict(params)}


def progress_of(study: Study, recipe: Recipe, began: float, finished_before: int) -> Progress:
    """The progress of the study; the rest is timed by the speed since ``began`` (of `time.monotonic`)."""
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    total, fresh = total_trials(recipe), len(complete) - finished_before
    left = (time.monotonic() - began) / fresh * (total - len(complete)) if fresh > 0 else None
    running = sum(t.state == TrialState.RUNNING for t in trials)
    values = [t.value for t in complete if t.value is not None]
    best = recipe.task.task().metric.best(values, key=float) if values else None
    return Progress(total, len(complete), running, best, left)
