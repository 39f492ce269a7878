"""The settings that vary within a comparison or a sweep: remedies, lists of values, and ranges."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from trainability.errors import ArgumentError, suggestion
from trainability.experiments.settings import Positive, RemedySettings, Settings
from trainability.remedies.registry import combine, entry

# The rest is the same for all networks of a comparison or a sweep: its data, its devices, its seeds.
_VARIABLE = ("model.", "remedies.", "optimizer.", "schedule.", "data.augment", "epochs", "batch_size")
# Networks that differ in nothing else can train as one stack.
STACKABLE = (
    "optimizer.lr",
    "optimizer.weight_decay",
    "remedies.lbe.alpha",
    "remedies.lbe.beta",
    "remedies.lbe.alpha_min",
)


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


Choices = Annotated[list[int | float | str | bool], Field(min_length=1)]
Values = Annotated[
    Annotated[Choices, Tag("function-list")] | Annotated[Range, Tag("function-range")],
    Discriminator(lambda given: "function-range" if isinstance(given, dict | Range) else "function-list"),
]


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    for name, values in parameters.items():
        if not name.startswith(_VARIABLE):
            raise ArgumentError(
                f"{name} is the same for all; what can vary begins with {', '.join(_VARIABLE)}", code="cannot-vary"
            )
        if not isinstance(values, Range) and len(set(map(repr, values))) < len(values):
            raise ArgumentError(f"a value of {name} is there twice", code="duplicate")


class CompareSettings(Settings):
    """The remedies that a comparison puts beside one another, each with every choice of the parameters.

    Args:
        remedies: a list of names, or of names joined by +, such as tat+lbe, or of lists with settings
        parameters: lists of values by dotted names: {model.depth: [10, 30]}
    """

    remedies: Annotated[tuple[RemedySettings, ...], Field(min_length=1)] = (
        combine("default"),
        combine("he"),
        combine("lbe"),
    )
    parameters: Annotated[dict[str, Choices], Field(default_factory=dict)]

    @field_validator("remedies", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_parameters(self.parameters)
        names = [combination.name for combination in self.remedies]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ArgumentError(f"the remedy {twice} is there twice", code="duplicate")
        for name in self.parameters:
            if name.startswith("remedies."):
                self._check_remedy(name)
        return self

    def _check_remedy(self, name: str) -> None:
        """Refuse a parameter that no remedy of the comparison has."""
        remedy, _, setting = name.removeprefix("remedies.").partition(".")
        found = entry(remedy)
        if setting not in found.settings:
            known = ", ".join(f"remedies.{remedy}.{own}" for own in found.settings) or "none"
            raise ArgumentError(
                f"{name} is not a setting; {suggestion(setting, found.settings)}those of {remedy}: {known}",
                code="unknown-setting",
            )
        if not any(part["name"] == remedy for combination in self.remedies for part in combination.to_list()):
            raise ArgumentError(
                f"{name} is for {remedy}, which is not among the remedies that are compared", code="does-not-apply"
            )


class SweepSettings(Settings):
    """The numbers that a sweep varies. A trial is one choice of values, trained on every seed of the recipe.

    Args:
        method: grid, or tpe with `trials` and ranges {low, high, log}
        parameters: lists of values by dotted names: {optimizer.lr: [0.001, 0.003]}
        trials: of tpe: how many
        stack: networks at once in a worker, if so many fit in memory
        storage: of the study: a file in the sweep's folder, or postgresql+psycopg://USER@HOST/NAME
        retries: how often a trial is tried again whose worker died
        heartbeat: seconds; a worker that is silent for three of them is taken for dead
    """

    method: Literal["grid", "tpe"] = "grid"
    parameters: Annotated[dict[str, Values], Field(min_length=1)]
    trials: Positive | None = None
    stack: Positive = 16
    storage: str | None = None
    retries: Annotated[int, Field(ge=0)] = 5
    heartbeat: Positive = 10

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_parameters(self.parameters)
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
