"""The settings of a comparison, from flags and from a YAML file; what is unknown or impossible is refused."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainability.data import NAMES
from trainability.experiments.arms import ARMS


class ConfigError(ValueError):
    """Settings that cannot be, or a file of settings that cannot be read."""


PositiveInt = Annotated[int, Field(ge=1)]


class CompareConfig(BaseModel):
    """What `trainability compare` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    data_dir: Path | None = None
    hub: bool = False
    depth: tuple[PositiveInt, ...] = (30,)
    width: PositiveInt = 64
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1e-3,)
    epochs: PositiveInt = 100
    seeds: PositiveInt = 3
    remedies: tuple[str, ...] = ("default", "he", "lbe")
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    alpha_min: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
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
            raise ValueError("the list is empty")
        return tuple(dict.fromkeys(value))

    @field_validator("data")
    @classmethod
    def _known_data(cls, value: str) -> str:
        if value not in NAMES:
            raise ValueError(f"there is no data set {value!r}; choose from {', '.join(NAMES)}")
        return value

    @field_validator("remedies")
    @classmethod
    def _known_remedies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in ARMS:
                near = difflib.get_close_matches(name, ARMS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"there is no remedy {name!r}; {hint}choose from {', '.join(ARMS)}")
        return value


def configure(flags: dict[str, Any], file: Path | None = None) -> CompareConfig:
    """Merge a YAML file and flags, which win, into a valid configuration.

    Raises:
        ConfigError: one sentence that says which setting is wrong and why.

    >>> configure({"depth": [0]})
    Traceback (most recent call last):
    ...
    trainability.experiments.config.ConfigError: depth should be greater than or equal to 1 (it is 0)
    """
    settings = {**(_read(file) if file else {}), **flags}
    try:
        return CompareConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, CompareConfig.model_fields, n=1)
            raise ConfigError(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")) from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise ConfigError(f"{name}: {message}") from None
        message = message.removeprefix("Input ").partition(",")[0]
        raise ConfigError(f"{name} {message} (it is {first['input']})") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"the config {file} is not valid YAML{place}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the config {file} must be a mapping of settings, such as 'depth: [30]'")
    return {str(key): value for key, value in content.items()}
