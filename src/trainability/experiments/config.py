"""The settings of a comparison, from flags and from a YAML file; what is unknown or impossible is refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainability.data import FolderOptions, check_name, folder_options
from trainability.errors import ArgumentError
from trainability.experiments.validation import read_yaml, validated
from trainability.models import ACTIVATIONS
from trainability.models.resnet import check_depth
from trainability.remedies import combine

PositiveInt = Annotated[int, Field(ge=1)]


class CompareConfig(BaseModel):
    """What `trainability compare` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    data_dir: Path | None = None
    hub: bool = False
    held_out: Annotated[int, Field(ge=0)] | None = None
    image_size: PositiveInt | None = None
    classes: PositiveInt | None = None
    per_class: PositiveInt | None = None
    model: Literal["fnn", "cnn", "resnet"] = "fnn"
    nonlinearity: str = "relu"
    depth: tuple[PositiveInt, ...] = (30,)
    width: PositiveInt = 64
    strides: Annotated[int, Field(ge=0)] = 0
    convolutions: Literal[2, 3] = 2
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1e-3,)
    epochs: PositiveInt = 100
    seeds: PositiveInt = 3
    remedies: tuple[str, ...] = ("default", "he", "lbe")
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    convention: Literal["paper", "published-code"] = "paper"
    alpha_min: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    eta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3
    keep: Annotated[float, Field(gt=0, le=1)] = 0.95
    zeta: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.5
    augment: bool = False
    device: str = "cpu"

    @field_validator("depth", "lr", "remedies", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int | float) else value

    @field_validator("depth", "lr", "remedies")
    @classmethod
    def _not_empty_and_unique(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ArgumentError("the list is empty", code="empty")
        return tuple(dict.fromkeys(value))

    @field_validator("data")
    @classmethod
    def _known_data(cls, value: str) -> str:
        return check_name(value)

    @field_validator("nonlinearity")
    @classmethod
    def _known_nonlinearity(cls, value: str) -> str:
        if value not in ACTIVATIONS:
            raise ArgumentError(
                f"there is no nonlinearity {value!r}; choose from {', '.join(ACTIVATIONS)}", code="unknown-choice"
            )
        return value

    def images(self) -> FolderOptions | None:
        """What is taken of a folder; None for another data set."""
        return folder_options(self.data, self.image_size, self.classes, self.per_class)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.images()
        if self.strides and self.model != "cnn":
            raise ArgumentError("strides belong to model: cnn", code="does-not-apply")
        for name in self.remedies:
            combine(name).options(self.model)
            if self.model == "resnet" and "residual" in name.split("+"):
                raise ArgumentError(
                    f"the remedy {name} belongs to fnn and cnn; model: resnet has its shortcuts", code="does-not-apply"
                )
        if self.convolutions == 3 and self.model != "resnet":
            raise ArgumentError("convolutions belongs to model: resnet", code="does-not-apply")
        if self.model == "resnet":
            for depth in self.depth:
                check_depth(depth, self.convolutions)
        return self

    @field_validator("remedies")
    @classmethod
    def _known_remedies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            combine(name)
        return value


def configure(flags: dict[str, Any], file: Path | None = None) -> CompareConfig:
    """Merge a YAML file and flags, which win, into a valid configuration.

    Raises:
        ConfigError: one sentence that says which setting is wrong and why.

    >>> configure({"depth": [0]})
    Traceback (most recent call last):
    ...
    trainability.errors.ConfigError: depth should be greater than or equal to 1 (it is 0)
    """
    return validated(CompareConfig, {**(read_yaml(file, "config") if file else {}), **flags})
