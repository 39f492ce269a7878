"""The sections of a recipe: data, model, task, remedies, optimizer, schedule, engine."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    field_validator,
    model_validator,
)

from trainability._lazy import Configured
from trainability._references import is_reference
from trainability.data import registry as data_sets
from trainability.errors import ArgumentError, TrainabilityError, suggestion
from trainability.models import registry as models
from trainability.models.own import OwnModel
from trainability.remedies import registry as remedies
from trainability.tasks import registry as tasks
from trainability.tasks.base import TaskKind

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Optimizers that need not be looked up: torch has them, and they take what every recipe gives.
_PLAIN = ("adam", "adamw", "sgd")


def _is_number(annotation: Any) -> bool:
    if annotation in (int, float):
        return True
    parts = get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ()
    return any(map(_is_number, parts)) and bool not in parts


def _refuse_flags(given: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Raise ArgumentError for true and false where a number belongs, for which they would be taken."""
    for name, value in given.items():
        if isinstance(value, bool) and _is_number(annotations.get(name)):
            raise ArgumentError(f"{name} must be a number, and it is {str(value).lower()}", code="setting-type")


class Settings(BaseModel):
    """Settings of which every key is checked; the docstring of each kind describes them under ``Args:``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            _refuse_flags(given, {name: field.annotation for name, field in cls.model_fields.items()})
        return given


class DataSettings(Settings):
    """The data set.

    Args:
        name: digits, mnist, fashion-mnist, cifar10, cifar100; folder, of DIR/train/CLASS/ and DIR/val/CLASS/; or
            file.py:name, a function that returns the data
        dir: folder of the official files, or of one's own images
        hub: take it from the Hugging Face hub instead
        held_out: training samples held out for validation; 10000 unless given, 360 of digits, a tenth of a folder
        image_size: of a folder: pixels of each side, 64 unless given
        classes: of a folder: the first so many classes
        per_class: of a folder: so many training images of each class
        augment: affine maps and contrast of digits and clothes, crops and mirroring of photographs, by each seed
        pln: per-location normalization: a channel of ones, then mean square 1 at every pixel
        options: arguments of a function of one's own, where name is file.py:name
    """

    name: str = "digits"
    dir: Path | None = None
    hub: bool = False
    held_out: int | None = None
    image_size: int | None = None
    classes: int | None = None
    per_class: int | None = None
    augment: bool = False
    pln: bool = False
    options: dict[str, Any] = {}

    @property
    def own(self) -> bool:
        """True for data that a function of the user's own returns."""
        return is_reference(self.name)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.own:
            others = [name for name in type(self).model_fields if name not in ("name", "options")]
            if given := next((name for name in others if getattr(self, name)), None):
                raise ArgumentError(
                    f"{given} does not apply to {self.name}; what it needs are data.options", code="does-not-apply"
                )
            return self
        if self.name.endswith((".py", ".csv")):
            file = self.name if self.name.endswith(".py") else "my_file.py"
            raise ArgumentError(
                f"{self.name} is a file; write {file}:NAME, of a function that returns the data", code="unknown-choice"
            )
        if self.options:
            raise ArgumentError(
                f"options are arguments of a function of one's own, and {self.name} is none", code="does-not-apply"
            )
        data_sets.check(self.name, self.request())
        return self

    def request(self) -> data_sets.Request:
        """The part of the settings that says which samples."""
        return data_sets.Request(self.dir, self.hub, self.held_out, self.image_size, self.classes, self.per_class)


def _named(section: str, default: str, known: Callable[[], tuple[str, ...]], kind_of: Callable[[Any], Any]) -> Any:
    """A parser of what a registry knows by name: from a name, a mapping with a name, or an object of its settings."""

    def parse(given: Any) -> Any:
        if isinstance(given, Configured):
            return given
        if not isinstance(given, str | Mapping):
            raise ArgumentError("it is a name, or a mapping of settings with a name among them", code="setting-type")
        name, options = (given, {}) if isinstance(given, str) else (given.get("name", default), dict(given))
        options.pop("name", None)
        if not isinstance(name, str):
            raise ArgumentError(f"its name is {name!r}; give one name", code="setting-type")
        if name.endswith(".py"):
            raise ArgumentError(f"{name} is a file; write {name}:NAME, of a function in it", code="unknown-choice")
        if section == "model" and is_reference(name):
            return _own_model(name, options)
        kind = kind_of(name)
        own = kind.settings()
        for option in options:
            if option in own:
                continue
            others = [other for other in known() if option in kind_of(other).settings()]
            if others:
                raise ArgumentError(f"{option} belongs to {section}.name: {' or '.join(others)}", code="does-not-apply")
            hint = suggestion(f"{section}.{option}", [f"{section}.{setting}" for setting in own])
            raise ArgumentError(
                f"{option} is not a setting of {name}; {hint}it has {', '.join(own) or 'none'}", code="unknown-setting"
            )
        _refuse_flags(options, {setting: field.type for setting, field in own.items()})
        return TypeAdapter(kind).validate_python(options)

    return parse


def _own_model(reference: str, given: Mapping[str, Any]) -> OwnModel:
    if others := [name for name in given if name != "options"]:
        raise ArgumentError(
            f"{others[0]} is not a setting of a model of one's own; write model.options.{others[0]}, which goes to "
            f"{reference}",
            code="unknown-setting",
        )
    options = given.get("options") or {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ArgumentError("options is a mapping of arguments, such as {depth: 20}", code="setting-type")
    return OwnModel(reference, dict(options))


_AS_DICT = PlainSerializer(lambda configured: configured.to_dict())
ModelSettings = Annotated[
    models.Architecture, PlainValidator(_named("model", "fnn", models.names, models.architecture)), _AS_DICT
]
TaskSettings = Annotated[TaskKind, PlainValidator(_named("task", "classification", tasks.names, tasks.kind)), _AS_DICT]


def _combination(given: Any) -> remedies.Combination:
    if isinstance(given, remedies.Combination):
        return given
    try:
        return remedies.combine("default" if given is None else given)
    except TrainabilityError as error:  # a TypeError among them would not be taken for a wrong value
        raise ArgumentError(str(error), code=error.code) from None


RemedySettings = Annotated[
    remedies.Combination, PlainValidator(_combination), PlainSerializer(lambda combination: combination.to_list())
]


class OptimizerSettings(Settings):
    """The optimizer.

    Args:
        name: any of torch.optim or, with the extra `optimizers`, of pytorch-optimizer: soap, shampoo, muon, ...
        lr: learning rate
        weight_decay: of the weights; LBE's targets are never decayed
        options: further arguments: {betas: [0.9, 0.95]}
    """

    name: str = "adam"
    lr: Rate = 1e-3
    weight_decay: Amount = 0.0
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _takes_its_options(self) -> Self:
        if taken := {"lr", "weight_decay"} & self.options.keys():
            raise ArgumentError(f"{taken.pop()} belongs beside options, not among them", code="duplicate")
        if self.name not in _PLAIN or self.options:
            from trainability.training import optimizers

            optimizers.check(self.name, lr=self.lr, weight_decay=self.weight_decay, options=self.options)
        return self


class ScheduleSettings(Settings):
    """The course of the learning rate.

    Args:
        kind: constant, step (milestones, gamma), cosine (warmup), plateau (gamma, patience)
        milestones: of step: epochs after which the rate is multiplied by gamma
        gamma: of step and plateau: the factor
        warmup: of cosine: epochs of a linear rise
        patience: of plateau: epochs without a better validation score
    """

    kind: Literal["constant", "step", "cosine", "plateau"] = "constant"
    milestones: tuple[Positive, ...] = ()
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warmup: Amount = 0.0
    patience: Positive = 5

    @field_validator("milestones", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind == "step") != bool(self.milestones):
            raise ArgumentError("milestones belong to kind: step, and it needs them", code="settings-conflict")
        if self.warmup and self.kind != "cosine":
            raise ArgumentError("warmup belongs to kind: cosine", code="does-not-apply")
        return self


class EngineSettings(Settings):
    """The devices and the way of running; what is ``auto`` is chosen by measurement and written into the record.

    Args:
        device: cpu, cuda, cuda:1 or mps
        devices: processes that share each batch
        nodes: hosts
        strategy: over several processes: ddp; or fsdp, which shares out the weights of one network
        precision: 32-true, 64-true, bf16-mixed or bf16-true; none of them scales the loss
        tf32: TensorFloat-32 products, on CUDA
        threads: of the CPU, per process
        members: how a stack runs: direct, vmap, loop, streams (CUDA); auto measures where it is not plain
        compile: torch.compile: on, off; auto measures, for trainings that are worth it
        cuda_graph: on one CUDA device, every step launched as one graph: auto where it can be, on or an error, off
    """

    device: str = "cpu"
    devices: Positive = 1
    nodes: Positive = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "64-true", "bf16-mixed", "bf16-true"] = "32-true"
    tf32: bool = False
    threads: Positive | None = None
    members: Literal["auto", "direct", "vmap", "loop", "streams"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    cuda_graph: Literal["auto", "on", "off"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tf32 and not self.device.startswith("cuda"):
            raise ArgumentError(f"tf32 needs device: cuda, and device is {self.device}", code="needs-cuda")
        if self.members == "streams" and not self.device.startswith("cuda"):
            raise ArgumentError(f"members: streams needs device: cuda, and device is {self.device}", code="needs-cuda")
        if self.cuda_graph == "on" and (not self.device.startswith("cuda") or self.devices * self.nodes > 1):
            raise ArgumentError(
                f"cuda_graph: on needs device: cuda and one process; device is {self.device}, devices × nodes is "
                f"{self.devices * self.nodes}",
                code="needs-cuda",
            )
        if not re.fullmatch(r"(cpu|cuda|mps)(:\d{1,4})?", self.device):
            hint = suggestion(self.device, ("cpu", "cuda", "mps"))
            raise ArgumentError(f"there is no device {self.device!r}; {hint}choose from cpu, cuda, mps", code="device")
        if self.device.startswith("cpu:"):
            raise ArgumentError(
                f"device: {self.device} is not a device, since CPUs have no numbers; write cpu", code="device"
            )
        if ":" in self.device and self.devices > 1:
            raise ArgumentError(
                f"device: {self.device} names one device, and devices is {self.devices}", code="settings-conflict"
            )
        if self.strategy == "fsdp":
            if self.devices * self.nodes < 2:
                raise ArgumentError(
                    "strategy: fsdp shares the weights out over processes; set devices to 2 or more",
                    code="settings-conflict",
                )
            if self.precision == "64-true" or self.compile == "on":
                raise ArgumentError(
                    "strategy: fsdp goes with neither precision: 64-true nor compile: on", code="settings-conflict"
                )
        return self
