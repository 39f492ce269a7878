"""Recipes: one experiment written down in YAML, every key checked."""

import hashlib
import json
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from trainability.errors import ArgumentError, ConfigError
from trainability.experiments.settings import (
    DataRecipe,
    EngineRecipe,
    LBERecipe,
    ModelRecipe,
    OptimizerRecipe,
    Positive,
    RemedyRecipe,
    ScheduleRecipe,
    Settings,
)
from trainability.experiments.validation import read_yaml, validated
from trainability.tasks import task
from trainability.training import loggers
from trainability.training.addresses import without_password
from trainability.training.updates import ELEMENTWISE

_CHECKED = 2000  # of the trials of a grid; more would take long
_MOST = 100_000


class Range(Settings):
    """An interval that TPE searches; ``log`` on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ArgumentError(f"low ({self.low:g}) must be below high ({self.high:g})", code="out-of-range")
        if self.log and self.low <= 0:
            raise ArgumentError(f"low ({self.low:g}) must be above 0 on a logarithmic scale", code="out-of-range")
        return self


# The rest is the same for all trials of a worker: its data, its devices, its seeds.
_VARIABLE = ("model.", "remedy.", "lbe.", "optimizer.", "schedule.", "data.augment", "init", "epochs", "batch_size")
Choices = Annotated[list[int | float | str | bool], Field(min_length=1)]
Values = Annotated[
    Annotated[Choices, Tag("function-list")] | Annotated[Range, Tag("function-range")],
    Discriminator(lambda given: "function-range" if isinstance(given, dict | Range) else "function-list"),
]


class SweepRecipe(Settings):
    """What a sweep varies. A trial is one choice of values, trained on every seed of the recipe."""

    method: Literal["grid", "tpe"] = "grid"
    parameters: Annotated[dict[str, Values], Field(min_length=1)]
    trials: Positive | None = None
    stack: Positive = 16
    storage: str | None = None
    retries: Annotated[int, Field(ge=0)] = 5
    heartbeat: Positive = 10

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, values in self.parameters.items():
            if not name.startswith(_VARIABLE):
                raise ArgumentError(
                    f"{name} cannot vary within a sweep; what can begins with {', '.join(_VARIABLE)}",
                    code="cannot-vary",
                )
            if not isinstance(values, Range) and len(set(map(repr, values))) < len(values):
                raise ArgumentError(f"a value of {name} is there twice", code="duplicate")
        ranges = [name for name, values in self.parameters.items() if isinstance(values, Range)]
        if self.method == "grid" and ranges:
            raise ArgumentError(
                f"a grid needs a list of values for {ranges[0]}, not a range; or take method: tpe", code="needs-a-list"
            )
        if self.method == "grid" and self.trials is not None:
            raise ArgumentError(
                "trials belongs to method: tpe; a grid has as many as its lists give", code="does-not-apply"
            )
        if self.method == "tpe" and self.trials is None:
            raise ArgumentError("method: tpe needs trials, how many to run", code="missing-setting")
        return self


class Recipe(Settings):
    """One experiment: data, model, remedies, optimizer, schedule, seeds."""

    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    task: str = "classification"
    init: Literal["default", "he", "lecun", "orthogonal", "delta-orthogonal", "suo", "lsuv"] = "default"
    remedy: RemedyRecipe | None = None
    lbe: LBERecipe | None = None
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    engine: EngineRecipe = EngineRecipe()
    epochs: Annotated[int, Field(ge=1, le=10**9)] = 10
    batch_size: Annotated[int, Field(ge=2)] = 128
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    checkpoint_every: Positive | None = None
    probes: Annotated[int, Field(ge=0)] = 20
    loggers: tuple[str, ...] = ()
    sweep: SweepRecipe | None = None

    @field_validator("remedy", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= 10**6:
                raise ArgumentError(f"{value} seeds cannot be; 3 means seeds 0, 1 and 2", code="out-of-range")
            return tuple(range(value))
        if not isinstance(value, list | tuple) or not value:
            raise ArgumentError("write a number, or a list of numbers", code="setting-type")
        return value

    @field_validator("seeds")
    @classmethod
    def _unique(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ArgumentError("a seed is there twice", code="duplicate")
        return value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        return task(value).name

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        loggers.check(value)
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.schedule.milestones and max(self.schedule.milestones) >= self.epochs:
            raise ArgumentError(
                f"schedule.milestones: {max(self.schedule.milestones)} is not within the {self.epochs} epochs",
                code="out-of-range",
            )
        if self.remedy and self.remedy.sets_weights and self.init != "default":
            raise ArgumentError(
                f"init: {self.init} would be undone by the weights of remedy: {self.remedy.name}; leave it out",
                code="settings-conflict",
            )
        if self.remedy and self.remedy.shapes and self.model.batchnorm:
            raise ArgumentError(
                f"remedy: {self.remedy.name} does not go with BatchNorm; set model.batchnorm: false",
                code="settings-conflict",
            )
        if self.remedy and self.remedy.name == "ic" and (self.model.batchnorm or self.model.unit != "baseline"):
            raise ArgumentError(
                "remedy: ic takes the place of BatchNorm and of units with IC layers; leave those out",
                code="settings-conflict",
            )
        if self.remedy and self.remedy.brings_shortcuts and self.model.residual:
            raise ArgumentError(
                f"remedy: {self.remedy.name} brings shortcuts, and the model has them; set residual: false",
                code="settings-conflict",
            )
        if self.schedule.warmup >= self.epochs:
            raise ArgumentError(
                f"schedule.warmup: {self.schedule.warmup:g} is not within the {self.epochs} epochs", code="out-of-range"
            )
        if self.data.held_out == 0 and (self.sweep or self.schedule.kind == "plateau"):
            what = "a sweep" if self.sweep else "schedule.kind: plateau"
            raise ArgumentError(
                f"{what} goes by validation accuracy, so data.held_out cannot be 0", code="needs-validation"
            )
        if self.engine.strategy == "fsdp":
            if len(self.seeds) > 1:
                raise ArgumentError(
                    f"engine.strategy: fsdp shares out one network, and seeds are {len(self.seeds)}; give one",
                    code="settings-conflict",
                )
            if self.model.scale != "identity" or (self.remedy and self.remedy.name in ("rezero", "skipinit", "fixup")):
                raise ArgumentError(
                    "engine.strategy: fsdp cannot share out the single numbers that scale branches; take ddp",
                    code="settings-conflict",
                )
            if self.optimizer.name.lower() not in ELEMENTWISE:
                raise ArgumentError(
                    f"engine.strategy: fsdp takes optimizer.name: {', '.join(sorted(ELEMENTWISE))}",
                    code="settings-conflict",
                )
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
        if self.sweep is not None:
            if self.loggers:
                raise ArgumentError(
                    "loggers: a sweep writes to its study; they belong to trainability train", code="does-not-apply"
                )
            if processes > 1:
                raise ArgumentError(
                    f"a sweep takes its processes by --workers; engine asks each trial for {processes}",
                    code="does-not-apply",
                )
            self._check_trials(self.sweep)
        return self

    def _check_trials(self, sweep: SweepRecipe) -> None:
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

    def with_values(self, values: dict[str, Any]) -> "Recipe":
        """The recipe of one trial: with these values at dotted names, and without a sweep.

        >>> Recipe(lbe={"beta": 0.1}).with_values({"lbe.alpha": 1.0, "optimizer.lr": 0.01}).lbe.alpha
        1.0
        """
        content = self.model_dump(mode="json", exclude={"sweep"})
        for name, value in values.items():
            *path, last = name.split(".")
            place: Any = content
            for part in path:
                if place.get(part) is None and part in place:
                    place[part] = {}
                place = place.get(part)
                if not isinstance(place, dict):
                    raise ArgumentError(
                        f"sweep.parameters: {name} is not a setting of a recipe", code="unknown-setting"
                    )
            place[last] = value
        return validated(Recipe, content)

    def resolved(self) -> dict[str, Any]:
        """Every setting, as plain values, without the password of a storage."""
        content: dict[str, Any] = self.model_dump(mode="json")
        if content["sweep"] and content["sweep"]["storage"]:
            content["sweep"]["storage"] = without_password(content["sweep"]["storage"])
        return content

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


def read_recipe(file: Path, changes: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply changes at dotted names.

    Raises:
        ConfigError: it cannot be read, or a setting is unknown or impossible; the message names it.
    """
    content = read_yaml(file, "recipe")
    for name, value in (changes or {}).items():
        *path, last = name.split(".")
        place: Any = content
        for part in path:
            if not isinstance(place, dict):
                break
            place[part] = place.get(part) or {}
            place = place[part]
        if not isinstance(place, dict):
            raise ConfigError(f"--set {name}: {'.'.join(path)} has no settings of its own", code="unknown-setting")
        place[last] = value
    return validated(Recipe, content)
