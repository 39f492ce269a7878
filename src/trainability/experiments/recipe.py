"""Recipes: one experiment written down, every key checked."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from math import prod
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from trainability._references import is_reference
from trainability.errors import ArgumentError, ConfigError, TrainabilityError
from trainability.experiments.axes import CompareSettings, Range, SweepSettings
from trainability.experiments.settings import (
    DataSettings,
    EngineSettings,
    ModelSettings,
    OptimizerSettings,
    Positive,
    RemedySettings,
    ScheduleSettings,
    Settings,
    TaskSettings,
)
from trainability.experiments.validation import validated
from trainability.models import registry as models
from trainability.models.fnn import FNN
from trainability.remedies.registry import combine
from trainability.tasks import registry as tasks
from trainability.tasks.kinds.classification import Classification
from trainability.training.addresses import without_password
from trainability.training.schedules import Schedule

_CHECKED = 2000  # of the trials of a grid; more would take long
_MOST = 100_000


@dataclass(frozen=True)
class Cell:
    """One side of a comparison: the values of its parameters, and the recipe that trains it."""

    values: dict[str, Any]
    recipe: "Recipe"


class Recipe(Settings):
    """One experiment: data, model, task, remedies, optimizer, schedule, seeds.

    Args:
        model: the architecture; its settings stand beside its name
        task: the loss and the metrics; its settings stand beside its name
        remedies: a name, names joined by +, or a list of names and mappings: [tat, {name: lbe, beta: 0.1}]
        epochs: passes over the training set
        batch_size: samples per step and network, over all processes
        seeds: a list, or a number: 3 means 0, 1 and 2; one network each, trained at once as a stack
        checkpoint_every: steps between checkpoints; unless given an epoch, but not more often than every few seconds
        probes: how often the flow of every layer is measured
        loggers: tensorboard, wandb, mlflow (extras of these names)
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = FNN()
    task: TaskSettings = Classification()
    remedies: RemedySettings = combine("default")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    engine: EngineSettings = EngineSettings()
    epochs: Annotated[int, Field(ge=1, le=10**9)] = 100
    batch_size: Annotated[int, Field(ge=2, lt=2**63)] = 128
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0, 1, 2)
    checkpoint_every: Positive | None = None
    probes: Annotated[int, Field(ge=0, le=10**6)] = 20
    loggers: tuple[str, ...] = ()
    compare: CompareSettings | None = None
    sweep: SweepSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_loss(cls, given: Any) -> Any:
        """Take ``loss`` and ``metrics`` for settings of a task of the user's own."""
        if not isinstance(given, Mapping) or not {"loss", "metrics"} & given.keys():
            return given
        content = dict(given)
        own = {name: content.pop(name) for name in ("loss", "metrics") if name in content}
        if (named := content.get("task")) not in (None, "own", {"name": "own"}):
            name = named.get("name") if isinstance(named, Mapping) else named
            raise ArgumentError(
                f"loss and metrics are of a task of one's own, and task is {name}; leave one out",
                code="settings-conflict",
            )
        return {**content, "task": {"name": "own", **own}}

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= 10**6:
                raise ArgumentError(
                    f"{value} is no number of seeds from 1 to a million; 3 means seeds 0, 1 and 2", code="out-of-range"
                )
            return tuple(range(value))
        if not isinstance(value, list | tuple) or not value or any(isinstance(seed, bool) for seed in value):
            raise ArgumentError("write a number, or a list of numbers", code="setting-type")
        return value

    @field_validator("seeds")
    @classmethod
    def _unique(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ArgumentError("a seed is there twice", code="duplicate")
        return value

    @field_validator("loggers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from trainability.training import loggers

        loggers.check(value)
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_schedule()
        self._check_processes()
        if self.compare is None:
            self.network()
        if self.compare is not None and self.sweep is not None:
            raise ArgumentError("compare and sweep are two experiments; leave one out", code="settings-conflict")
        if self.compare is not None:
            count = len(self.compare.remedies) * prod(map(len, self.compare.parameters.values()))
            if count * len(self.seeds) > _MOST:
                raise ArgumentError(
                    f"compare: {count} networks of {len(self.seeds)} seeds each are more than {_MOST} in all; leave "
                    "out values",
                    code="too-many-trials",
                )
            for _ in islice(self.cells(), _CHECKED):
                pass
        if self.sweep is not None:
            self._check_sweep(self.sweep)
        return self

    def _check_schedule(self) -> None:
        last = max(self.schedule.milestones, default=0)
        for name, epoch in (("milestones", last), ("warmup", self.schedule.warmup)):
            if epoch >= self.epochs:
                raise ArgumentError(
                    f"schedule.{name}: {epoch:g} is not within the {self.epochs} epochs", code="out-of-range"
                )
        if self.data.held_out == 0 and (self.sweep or self.schedule.kind == "plateau"):
            what = "a sweep" if self.sweep else "schedule.kind: plateau"
            raise ArgumentError(
                f"{what} goes by validation scores, so data.held_out cannot be 0", code="needs-validation"
            )

    def _check_processes(self) -> None:
        processes = self.engine.devices * self.engine.nodes
        if self.batch_size % processes:
            raise ArgumentError(
                f"batch_size: {self.batch_size} cannot be shared by {processes} processes evenly",
                code="batch-not-shareable",
            )
        if self.batch_size < 2 * processes:
            raise ArgumentError(
                f"batch_size: {self.batch_size} leaves {processes} processes less than two samples each",
                code="batch-not-shareable",
            )
        if self.engine.strategy == "fsdp":
            self._check_sharing_out()

    def _check_sharing_out(self) -> None:
        if len(self.seeds) > 1:
            raise ArgumentError(
                f"engine.strategy: fsdp shares out one network, and seeds are {len(self.seeds)}; give one",
                code="settings-conflict",
            )
        if {"rezero", "skipinit", "fixup"} & {part.to_dict()["name"] for part in self._all_parts()}:
            raise ArgumentError(
                "engine.strategy: fsdp cannot share out the single numbers that scale branches; take ddp",
                code="settings-conflict",
            )
        from trainability.training.updates import ELEMENTWISE

        if self.optimizer.name.lower() not in ELEMENTWISE:
            raise ArgumentError(
                f"engine.strategy: fsdp takes optimizer.name: {', '.join(sorted(ELEMENTWISE))}",
                code="settings-conflict",
            )

    def _all_parts(self) -> tuple[Any, ...]:
        return combine([*self.model.built_in(), *self.remedies.to_list()]).parts

    def network(self) -> models.Architecture:
        """The architecture with the options that remedies set in it.

        Raises:
            ArgumentError: a remedy that does not go with the model's own settings, or with this model.
        """
        self._all_parts()
        options = self.remedies.options(self.model.name)
        if foreign := options.keys() - self.model.settings():
            raise ArgumentError(
                f"remedies: {self.remedies.name} needs {', '.join(sorted(foreign))}, which model.name: "
                f"{self.model.name} does not have",
                code="does-not-apply",
            )
        if options and all(getattr(self.model, name) == value for name, value in options.items()):
            raise ArgumentError(
                f"remedies: {self.remedies.name} is what model.name: {self.model.name} has in any case; leave it out",
                code="nothing-to-change",
            )
        return replace(self.model, **options)

    def _check_sweep(self, sweep: SweepSettings) -> None:
        if self.loggers:
            raise ArgumentError(
                "loggers: a sweep writes to its study; they belong to trainability train", code="does-not-apply"
            )
        if (processes := self.engine.devices * self.engine.nodes) > 1:
            raise ArgumentError(
                f"a sweep takes its processes by --workers; engine asks each trial for {processes}",
                code="does-not-apply",
            )
        self._check_trials(sweep)

    def _check_trials(self, sweep: SweepSettings) -> None:
        """Refuse a sweep of which some trial could not be trained."""
        for name, values in sweep.parameters.items():
            if isinstance(values, Range):
                for value in (values.low, values.high):
                    self.with_values({name: value})
                try:
                    self.with_values({name: values.low + 0.123456 * (values.high - values.low)})
                except ConfigError:
                    raise ArgumentError(
                        f"sweep.parameters: {name} takes whole numbers, so give a list of them", code="needs-a-list"
                    ) from None
        lists = {n: v for n, v in sweep.parameters.items() if not isinstance(v, Range)}
        if (count := prod(map(len, lists.values()))) > _MOST:
            raise ArgumentError(
                f"sweep.parameters: {count} combinations are more than {_MOST}; take method: tpe",
                code="too-many-trials",
            )
        for choice in islice(product(*lists.values()), _CHECKED):
            trial = dict(zip(lists, choice, strict=True))
            try:
                self.with_values(trial)
            except ConfigError as error:
                shown = ", ".join(f"{n} = {v}" for n, v in trial.items())
                raise ArgumentError(f"sweep.parameters: with {shown}: {error}", code=error.code) from None

    def cells(self) -> Iterator[Cell]:
        """Yield every remedy of the comparison with every choice of its parameters; without one the recipe itself.

        Raises:
            ArgumentError: one of them is impossible; the message names it.
        """
        if self.compare is None:
            yield Cell({}, self)
            return
        names, seen = list(self.compare.parameters), set()
        for choice in product(*self.compare.parameters.values()):
            values = dict(zip(names, choice, strict=True))
            for combination in self.compare.remedies:
                parts = {f"remedies.{part['name']}." for part in combination.to_list()}
                mine = {
                    name: value
                    for name, value in values.items()
                    if not name.startswith("remedies.") or name.startswith(tuple(parts))
                }
                if (key := (combination.name, repr(mine))) in seen:
                    continue
                seen.add(key)
                try:
                    yield Cell(mine, self.with_values({"remedies": combination.to_list(), **mine}))
                except TrainabilityError as error:
                    shown = "".join(f", {name} = {value}" for name, value in mine.items())
                    raise ArgumentError(f"with {combination.name}{shown}: {error}", code=error.code) from None

    def with_values(self, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of one trial: with these values at dotted names, and without a comparison or a sweep.

        >>> recipe = Recipe(remedies="lbe").with_values({"remedies.lbe.alpha": 1.0, "optimizer.lr": 0.01})
        >>> recipe.remedies.loss.alpha
        1.0
        """
        content = self.model_dump(mode="json", exclude={"compare", "sweep"})
        for name, value in values.items():
            put(content, name, value)
        return validated(Recipe, content)

    def resolved(self) -> dict[str, Any]:
        """Every setting, as plain values, without the password of a storage."""
        content: dict[str, Any] = self.model_dump(mode="json")
        if content["sweep"] and content["sweep"]["storage"]:
            content["sweep"]["storage"] = without_password(content["sweep"]["storage"])
        return content

    def fixed_length(self) -> str | None:
        """The reason why a run of this recipe cannot be given more epochs once it has begun; None where it can."""
        if self.sweep is not None:
            return "a sweep keeps the scores of its trials, and no weights that could be trained on"
        kinds: Any = self.compare.parameters.get("schedule.kind") if self.compare else None
        for kind in kinds or [self.schedule.kind]:
            if Schedule(kind).depends_on_length:
                return f"with schedule.kind: {kind} every step depends on it"
        return None

    def digest(self) -> str:
        """A short name that is the same for the same experiment, wherever it runs."""
        content = self.resolved()
        for key in ("engine", "loggers", "checkpoint_every"):
            content.pop(key)
        content["data"].pop("dir")
        if content["sweep"]:
            for key in ("storage", "stack", "retries", "heartbeat"):
                content["sweep"].pop(key)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def put(content: dict[str, Any], name: str, value: Any) -> None:
    """Set a value at a dotted name; ``remedies.NAME.SETTING`` is that of the remedy of that name, added if need be.

    Raises:
        ConfigError: the name leads through something that has no settings.
    """
    *path, last = name.split(".")
    if path[1:] and path[0] in ("compare", "sweep") and path[1] == "parameters":  # whose keys are dotted names
        path, last = path[:2], ".".join([*path[2:], last])
    if path and path[0] == "remedies":
        content["remedies"] = combine(content.get("remedies") or "default").to_list()
        path = path[1:]
        if len(path) != 1:
            raise ConfigError(f"{name}: write remedies.NAME.SETTING=value", code="unknown-setting")
        mine = next((part for part in content["remedies"] if part["name"] == path[0]), None)
        if mine is None:
            content["remedies"].append(mine := {"name": path[0]})
        mine[last] = value
        return
    place: Any = content
    for part in path:
        if place.get(part) is None:
            place[part] = {}
        elif part in ("model", "task") and isinstance(place[part], str):
            place[part] = {"name": place[part]}
        place = place[part]
        if not isinstance(place, dict):
            raise ConfigError(f"{name}: {'.'.join(path)} has no settings of its own", code="unknown-setting")
    known = {"model.name": models.architecture, "task.name": tasks.kind}
    if name in known and isinstance(value, str):
        try:
            file = is_reference(value) or value.endswith(".py")
            own = {"options"} if file else known[name](value).settings()
        except ArgumentError as error:
            raise ConfigError(f"{name}: {error}", code=error.code) from None
        for other in place.keys() - own:  # settings of what stood there
            del place[other]
    place[last] = value
