"""The trials of a sweep in an Optuna study that any number of workers share, and may die at."""

import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from math import isfinite
from statistics import mean
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from trainability.errors import ConfigError
from trainability.experiments.axes import STACKABLE, Range
from trainability.experiments.recipe import Recipe
from trainability.tasks import Metric
from trainability.training.addresses import MASK, without_password, without_secrets

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
_OPENINGS = 6
_COUNTED = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)


def open_study(recipe: Recipe, storage: str) -> Study:
    """Open the study of a recipe, made and filled by whoever comes first.

    A worker that dies is noticed by the others when its heartbeat stops, and its trials are tried again.

    Raises:
        ConfigError: the storage cannot be reached, its address has a hidden password, or the study there is another's.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    place = without_password(storage)
    if MASK in storage:
        raise ConfigError(
            f"sweep.storage: {place} is an address whose password was hidden; give it whole, by --storage or "
            "TRAINABILITY_STORAGE",
            code="password-hidden",
        )
    if storage.startswith("sqlite") and ("?" in storage or ":memory:" in storage or storage.rstrip("/") == "sqlite:"):
        raise ConfigError(
            f"sweep.storage: {place} is not a plain file; write sqlite:///FILE, without a ? in its path", code="storage"
        )
    for attempt in range(_OPENINGS):
        try:
            with _quiet():
                return _study(recipe, storage)
        except ConfigError:
            raise
        except Exception as error:  # drivers, SQLAlchemy and optuna, on a database that may be anything
            reason = reason_of(error, storage)
            # Several workers that make the same tables at the same moment get into each other's way.
            if attempt + 1 == _OPENINGS or not any(
                word in reason for word in ("exists", "UNIQUE", "locked", "duplicate")
            ):
                raise ConfigError(f"sweep.storage: {place} cannot be reached: {reason}", code="storage") from None
            time.sleep(0.3 * (attempt + 1))
    raise AssertionError


def reason_of(error: Exception, storage: str) -> str:
    """The first line of what a database says, without the password of its address."""
    said = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    return without_secrets(said.partition("\n")[0], storage)


def _study(recipe: Recipe, storage: str) -> Study:
    assert recipe.sweep is not None
    sqlite = storage.startswith("sqlite")
    database = RDBStorage(
        storage,
        engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True},
        heartbeat_interval=recipe.sweep.heartbeat,
        grace_period=3 * recipe.sweep.heartbeat,
    )
    direction = StudyDirection.MAXIMIZE if recipe.task.task().metric.direction == "max" else StudyDirection.MINIMIZE
    study = optuna.create_study(
        storage=database,
        study_name=f"trainability-{recipe.digest()}",
        direction=direction,
        # Unseeded, so that each worker draws its own; constant_liar keeps them from drawing close to one another.
        sampler=optuna.samplers.TPESampler(constant_liar=True),
        load_if_exists=True,
    )
    if study.directions != [direction]:
        raise ConfigError(
            f"sweep.storage: the study {study.study_name} there is not one of this program; choose another database",
            code="study-foreign",
        )
    refill(study, recipe)
    return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns that heartbeats are experimental and meant for another way of running; this one is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield


def refill(study: Study, recipe: Recipe) -> None:
    """Queue every trial of a grid that is not there, and every one whose worker died, up to the number of retries.

    Two workers may queue the same one; `claim` then leaves the later aside.
    """
    assert recipe.sweep is not None
    there, lost, deaths = _account(study)
    wanted = {_key(values): values for values in grid(recipe)} if recipe.sweep.method == "grid" else lost
    for key, values in wanted.items():
        if key not in there and deaths[key] <= recipe.sweep.retries:
            study.enqueue_trial(values)


def _account(study: Study) -> tuple[set[str], dict[str, dict[str, Any]], Counter[str]]:
    """By their values: trials finished or to come, trials that failed, and how often a worker died at each."""
    trials = study.get_trials(deepcopy=False)
    there = {_key(_values(t)) for t in trials if t.state in _COUNTED}
    failed = [t for t in trials if t.state == TrialState.FAIL and not t.user_attrs.get("surplus")]
    lost = {_key(values): values for t in failed if (values := _values(t))}
    return there, lost, Counter(_key(_values(t)) for t in failed if not t.user_attrs.get("returned"))


def _values(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters, also while they are only queued."""
    queued = trial.system_attrs.get("fixed_params")
    return dict(queued if queued and isinstance(queued, dict) else trial.params)


def _key(values: dict[str, Any]) -> str:
    return repr(sorted(values.items()))


def grid(recipe: Recipe) -> list[dict[str, Any]]:
    """All combinations, those of one architecture together.

    >>> from trainability.experiments.recipe import Recipe
    >>> grid(Recipe(sweep={"parameters": {"remedies.lbe.beta": [0.1, 0.2], "model.depth": [5, 10]}}))[1]
    {'model.depth': 5, 'remedies.lbe.beta': 0.2}
    """
    assert recipe.sweep is not None
    names = sorted(recipe.sweep.parameters, key=lambda name: name in STACKABLE)
    lists = [values for name in names if not isinstance(values := recipe.sweep.parameters[name], Range)]
    return [dict(zip(names, values, strict=True)) for values in product(*lists)]


def total_trials(recipe: Recipe) -> int:
    """The number of trials of a sweep."""
    assert recipe.sweep is not None
    return recipe.sweep.trials or len(grid(recipe))


def claim(study: Study, recipe: Recipe, most: int) -> list[Trial]:
    """Take up to ``most`` trials that nobody else has."""
    assert recipe.sweep is not None
    total = total_trials(recipe)
    taken: list[Trial] = []
    while len(taken) < most:
        trials = study.get_trials(deepcopy=False)
        waiting = any(t.state == TrialState.WAITING for t in trials)
        if not waiting and (recipe.sweep.method == "grid" or _counted(trials) >= total):
            break
        with _quiet():
            trial = study.ask()
        _storage(study).record_heartbeat(trial._trial_id)
        if _is_surplus(study, trial, recipe, total):
            trial.set_user_attr("surplus", True)
            study.tell(trial, state=TrialState.FAIL)
            continue
        _suggest(trial, recipe)
        trial.set_user_attr("claimed", True)
        taken.append(trial)
    return taken


def _counted(trials: Sequence[FrozenTrial]) -> int:
    return sum(t.state in _COUNTED for t in trials)


def _is_surplus(study: Study, trial: Trial, recipe: Recipe, total: int) -> bool:
    """True where another worker was quicker: the same was queued twice, or none was left and a new one was made up."""
    assert recipe.sweep is not None
    trials = study.get_trials(deepcopy=False)
    queued = _values(next(t for t in trials if t.number == trial.number))
    earlier = [t for t in trials if t.number < trial.number and t.state in _COUNTED]
    if queued:
        return _key(queued) in {_key(_values(t)) for t in earlier}
    return recipe.sweep.method == "grid" or len(earlier) >= total


def fail_lost(study: Study, patience: float) -> None:
    """Fail the trials whose worker died: its heartbeat stopped, or it died before the first beat."""
    with _quiet():
        fail_stale_trials(study)
    now = datetime.now()
    for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        begun = t.datetime_start or now
        if not t.user_attrs.get("claimed") and (now - begun).total_seconds() > patience:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                _storage(study).set_trial_state_values(t._trial_id, state=TrialState.FAIL)


def _storage(study: Study) -> Any:
    """The database itself, below optuna's cache, which does not pass heartbeats on."""
    storage: Any = study._storage
    return getattr(storage, "_backend", storage)


def _suggest(trial: Trial, recipe: Recipe) -> None:
    assert recipe.sweep is not None
    for name, values in recipe.sweep.parameters.items():
        if isinstance(values, Range):
            trial.suggest_float(name, values.low, values.high, log=values.log)
        else:
            trial.suggest_categorical(name, values)


@contextmanager
def heartbeat(study: Study, trials: Sequence[Trial], interval: int) -> Iterator[None]:
    """Around the training of trials: tell the other workers that this one lives."""
    storage = _storage(study)
    stop = threading.Event()

    def beat() -> None:
        while True:
            with suppress(*STORAGE_ERRORS):  # it may be back at the next
                for trial in trials:
                    storage.record_heartbeat(trial._trial_id)
            if stop.wait(interval):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Row:
    """One trial: its values, and the means of the main metric over the seeds."""

    number: int
    params: dict[str, Any]
    val: float
    test: float
    runs: list[dict[str, Any]]


def rows(study: Study, recipe: Recipe) -> list[Row]:
    """The finished trials, the best first by validation score. Test scores had no part in the order.

    Those whose record is damaged, or of another version, are left out; `unreadable` names them.
    """
    found = [row for trial in _complete(study) if (row := _row(trial, recipe))]
    sign = -1 if recipe.task.task().metric.direction == "max" else 1
    return sorted(found, key=lambda row: (sign * row.val, row.number))


def unreadable(study: Study, recipe: Recipe) -> list[int]:
    """The numbers of finished trials whose record cannot be used."""
    return [trial.number for trial in _complete(study) if _row(trial, recipe) is None]


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _row(trial: FrozenTrial, recipe: Recipe) -> Row | None:
    """A trial as this version wrote it, or None: anybody may have written into the database."""
    assert recipe.sweep is not None
    runs, searched = trial.user_attrs.get("runs"), recipe.sweep.parameters
    if trial.params.keys() != searched.keys() or not all(_within(trial.params[n], v) for n, v in searched.items()):
        return None
    metric = recipe.task.task().metric
    if not isinstance(runs, list) or len(runs) != len(recipe.seeds) or not all(_is_run(run, metric) for run in runs):
        return None
    if trial.value is None or not (isfinite(trial.value) or trial.value == metric.worst):  # that of a run that diverged
        return None
    return Row(trial.number, dict(trial.params), trial.value, mean(value_of(run, metric, "test") for run in runs), runs)


def value_of(run: Mapping[str, Any], metric: Metric, part: Literal["val", "test"] = "val") -> float:
    """A run's part in the choice of the best trial: the worst value where it diverged."""
    value = run[f"{part}_{metric.name}"]
    return metric.worst if value is None or (part == "val" and run["status"] == "diverged") else value


def _within(value: Any, values: Sequence[Any] | Range) -> bool:
    if isinstance(values, Range):
        return isinstance(value, float) and values.low <= value <= values.high
    return value in values


def _is_run(run: Any, metric: Metric) -> bool:
    """True where it has what tables and reports read of a run."""
    if not isinstance(run, dict) or not isinstance(run.get("status"), str):
        return False
    return all(
        key in run and (run[key] is None or isinstance(run[key], int | float))
        for key in (f"val_{metric.name}", f"test_{metric.name}")
    )


def given_up(study: Study, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters of trials that died on every retry."""
    assert recipe.sweep is not None
    there, lost, deaths = _account(study)
    return [v for key, v in lost.items() if key not in there and deaths[key] > recipe.sweep.retries]
