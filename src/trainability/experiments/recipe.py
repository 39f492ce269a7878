"""Recipes: one experiment written down in YAML, every key checked."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from torch import nn

from trainability.data import NAMES
from trainability.experiments.validate import read_yaml, validated
from trainability.training import loggers
from trainability.training.optimisers import build, optimiser_class

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(_Settings):
    """The data set."""

    name: str = "digits"
    dir: Path | None = None
    hub: bool = False
    augment: bool = False

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in NAMES:
            raise ValueError(f"there is no data set {value!r}; choose from {', '.join(NAMES)}")
        return value


class ModelRecipe(_Settings):
    """The network: a fully connected ReLU network."""

    name: Literal["fnn"] = "fnn"
    depth: Positive = 30
    width: Positive = 64
    batchnorm: bool = False
    residual: bool = False


class LBERecipe(_Settings):
    """LBE in the loss."""

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    beta: Amount = 0.2
    alpha_min: Amount = 0.2
    convention: Literal["paper", "published-code"] = "paper"
    neurons: Literal["position", "channel"] = "position"


class OptimizerRecipe(_Settings):
    """An optimiser of torch.optim or the pytorch-optimizer package."""

    name: str = "adam"
    lr: Rate = 1e-3
    weight_decay: Amount = 0.0
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        optimiser_class(value)
        return value

    @field_validator("options")
    @classmethod
    def _not_twice(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := {"lr", "weight_decay"} & value.keys():
            raise ValueError(f"{taken.pop()} belongs beside options, not among them")
        return value

    @model_validator(mode="after")
    def _takes_its_options(self) -> Self:
        weights = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
        build(self.name, weights, [], lr=self.lr, weight_decay=self.weight_decay, options=self.options)
        return self


class ScheduleRecipe(_Settings):
    """How the learning rate changes."""

    kind: Literal["constant", "step", "cosine", "plateau"] = "constant"
    milestones: tuple[Positive, ...] = ()
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warmup: Amount = 0.0
    patience: Positive = 5

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind == "step") != bool(self.milestones):
            raise ValueError("milestones belong to kind: step, and it needs them")
        if self.warmup and self.kind != "cosine":
            raise ValueError("warmup belongs to kind: cosine")
        return self


class EngineRecipe(_Settings):
    """Where and how it runs. What is ``auto`` is chosen by measurement and written into the record."""

    device: str = "cpu"
    devices: Positive = 1
    nodes: Positive = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "64-true", "bf16-mixed", "bf16-true"] = "32-true"
    tf32: bool = False
    threads: Positive | None = None
    members: Literal["auto", "direct", "vmap", "loop"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_takes_on_for_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tf32 and not self.device.startswith("cuda"):
            raise ValueError(f"tf32 needs device: cuda, and device is {self.device}")
        if self.strategy == "fsdp" and not self.device.startswith("cuda"):
            raise ValueError(f"strategy: fsdp needs device: cuda, and device is {self.device}")
        return self


class Range(_Settings):
    """An interval that TPE searches; ``log`` on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a logarithmic scale")
        return self


Choices = Annotated[list[int | float | str | bool], Field(min_length=1)]
Values = Annotated[
    Annotated[Choices, Tag("function-list")] | Annotated[Range, Tag("function-range")],
    Discriminator(lambda given: "function-range" if isinstance(given, dict | Range) else "function-list"),
]


class SweepRecipe(_Settings):
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
        ranges = [name for name, values in self.parameters.items() if isinstance(values, Range)]
        if self.method == "grid" and ranges:
            raise ValueError(f"a grid needs a list of values for {ranges[0]}, not a range; or take method: tpe")
        if self.method == "grid" and self.trials is not None:
            raise ValueError("trials belongs to method: tpe; a grid has as many as its lists give")
        if self.method == "tpe" and self.trials is None:
            raise ValueError("method: tpe needs trials, how many to run")
        return self


class Recipe(_Settings):
    """One experiment: data, model, remedies, optimiser, schedule, seeds."""

    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    init: Literal["default", "he"] = "default"
    lbe: LBERecipe | None = None
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    engine: EngineRecipe = EngineRecipe()
    epochs: Positive = 10
    batch_size: Annotated[int, Field(ge=2)] = 128
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    checkpoint_every: Positive | None = None
    probes: Annotated[int, Field(ge=0)] = 20
    loggers: tuple[str, ...] = ()
    sweep: SweepRecipe | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError(f"{value} seeds are none; 3 means seeds 0, 1 and 2")
            return tuple(range(value))
        return value

    @field_validator("seeds")
    @classmethod
    def _unique(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is there twice")
        return value

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        loggers.check(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.schedule.milestones and max(self.schedule.milestones) >= self.epochs:
            raise ValueError(
                f"schedule.milestones: {max(self.schedule.milestones)} is not within the {self.epochs} epochs"
            )
        if self.schedule.warmup >= self.epochs:
            raise ValueError(f"schedule.warmup: {self.schedule.warmup:g} is not within the {self.epochs} epochs")
        processes = self.engine.devices * self.engine.nodes
        if self.batch_size % processes:
            raise ValueError(f"batch_size: {self.batch_size} cannot be shared by {processes} processes evenly")
        if self.batch_size < 2 * processes:
            raise ValueError(f"batch_size: {self.batch_size} leaves {processes} processes less than two samples each")
        if self.sweep is not None:
            for name, values in self.sweep.parameters.items():
                for value in [values.low, values.high] if isinstance(values, Range) else values:
                    self.with_values({name: value})
        return self

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
                    raise ValueError(f"sweep.parameters: {name} is not a setting of a recipe")
            place[last] = value
        return validated(Recipe, content)

    def resolved(self) -> dict[str, Any]:
        """Every setting, as plain values."""
        content: dict[str, Any] = self.model_dump(mode="json")
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
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return validated(Recipe, content)
