"""The sections of a recipe: data, model, remedies, optimizer, schedule, engine."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainability.data import FolderOptions, check_name, folder_options
from trainability.errors import ArgumentError
from trainability.models import ACTIVATIONS
from trainability.models.resnet import Unit, check_depth
from trainability.nn.shortcut import Scale
from trainability.remedies import DKS, EOC, IC, SELU, TAT, Normalize, Remedy, Residual
from trainability.remedies.normalization import Kind as NormalizeKind
from trainability.training import optimizers

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Settings of which every key is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(Settings):
    """The data set."""

    name: str = "digits"
    dir: Path | None = None
    hub: bool = False
    held_out: Annotated[int, Field(ge=0)] | None = None
    image_size: Positive | None = None
    classes: Positive | None = None
    per_class: Positive | None = None
    augment: bool = False
    pln: bool = False

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_name(value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.images()
        return self

    def images(self) -> FolderOptions | None:
        """What is taken of a folder; None for another data set."""
        return folder_options(self.name, self.image_size, self.classes, self.per_class)


class ModelRecipe(Settings):
    """The network: fully connected, convolutional, or a residual network of the CIFAR family."""

    name: Literal["fnn", "cnn", "resnet"] = "fnn"
    nonlinearity: str = "relu"
    depth: Annotated[int, Field(ge=1, le=10**5)] = 30
    width: Annotated[int, Field(ge=1, le=10**7)] = 64
    batchnorm: bool = False
    residual: bool = False
    strides: Annotated[int, Field(ge=0)] = 0
    unit: Unit = "baseline"
    scale: Scale = "identity"
    convolutions: Literal[2, 3] = 2
    keep: Annotated[float, Field(gt=0, le=1)] = 0.95

    @model_validator(mode="before")
    @classmethod
    def _a_resnet_has_shortcuts(cls, given: Any) -> Any:
        return {"residual": given.get("name") == "resnet", **given} if isinstance(given, dict) else given

    @field_validator("nonlinearity")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ACTIVATIONS:
            raise ArgumentError(
                f"there is no nonlinearity {value!r}; choose from {', '.join(ACTIVATIONS)}", code="unknown-choice"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.strides and self.name != "cnn":
            raise ArgumentError("strides belong to name: cnn", code="does-not-apply")
        if self.residual and self.name == "cnn":
            raise ArgumentError("residual belongs to name: fnn or resnet", code="does-not-apply")
        if self.unit != "baseline" and self.name != "resnet":
            raise ArgumentError(f"unit: {self.unit} belongs to name: resnet", code="does-not-apply")
        if self.name != "resnet" and (self.scale != "identity" or self.convolutions != 2):
            raise ArgumentError("scale and convolutions belong to name: resnet", code="does-not-apply")
        if self.name == "resnet":
            check_depth(self.depth, self.convolutions)
            if self.scale != "identity" and not self.residual:
                raise ArgumentError(
                    f"scale: {self.scale} is of branches beside a shortcut; set residual: true",
                    code="settings-conflict",
                )
        return self


_SHAPING = ("tat", "dks", "eoc")
_NORMALIZE: dict[str, NormalizeKind] = {
    "batchnorm": "batch",
    "layernorm": "layer",
    "groupnorm": "group",
    "weightnorm": "weight",
}


class RemedyRecipe(Settings):
    """A change of the network: shaping, IC layers, normalization, SELU or shortcuts."""

    name: Literal[
        "tat",
        "dks",
        "eoc",
        "ic",
        "selu",
        "batchnorm",
        "layernorm",
        "groupnorm",
        "weightnorm",
        "residual",
        "rezero",
        "skipinit",
        "fixup",
    ]
    keep: Annotated[float, Field(gt=0, le=1)] = 0.95
    dropout: Literal["element", "channel"] = "element"
    eta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    tau: Rate = 0.3
    zeta: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.5
    shortcut: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _its_own(self) -> Self:
        defaults = {name: field.default for name, field in type(self).model_fields.items() if name != "name"}
        takes = {
            "tat": ("eta", "tau", "shortcut"),
            "dks": ("zeta", "shortcut"),
            "eoc": ("shortcut",),
            "ic": ("keep", "dropout"),
        }.get(self.name, ())
        other = [key for key, value in defaults.items() if key not in takes and getattr(self, key) != value]
        if other:
            raise ArgumentError(f"{self.name} takes no {', '.join(other)}", code="does-not-apply")
        return self

    def remedy(self) -> Remedy:
        """The remedy of that name with its settings."""
        match self.name:
            case "tat":
                return TAT(eta=self.eta, tau=self.tau, shortcut=self.shortcut)
            case "dks":
                return DKS(zeta=self.zeta, shortcut=self.shortcut)
            case "eoc":
                return EOC(shortcut=self.shortcut)
            case "ic":
                return IC(keep=self.keep, dropout=self.dropout)
            case "selu":
                return SELU()
            case "residual":
                return Residual()
            case "rezero" | "skipinit" | "fixup":
                return Residual(self.name)
        return Normalize(_NORMALIZE[self.name])

    @property
    def shapes(self) -> bool:
        """Whether it is one that BatchNorm would undo."""
        return self.name in _SHAPING

    @property
    def brings_shortcuts(self) -> bool:
        """Whether it puts shortcuts around layers."""
        return self.name in ("residual", "rezero", "skipinit", "fixup")

    @property
    def sets_weights(self) -> bool:
        """Whether it draws the weights itself."""
        return self.shapes or self.name in ("selu", "fixup")


class LBERecipe(Settings):
    """LBE in the loss."""

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    beta: Amount = 0.2
    alpha_min: Amount = 0.2
    convention: Literal["paper", "published-code"] = "paper"
    neurons: Literal["position", "channel"] = "position"


class OptimizerRecipe(Settings):
    """An optimizer of torch.optim or the pytorch-optimizer package."""

    name: str = "adam"
    lr: Rate = 1e-3
    weight_decay: Amount = 0.0
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        optimizers.optimizer_class(value)
        return value

    @field_validator("options")
    @classmethod
    def _not_twice(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := {"lr", "weight_decay"} & value.keys():
            raise ArgumentError(f"{taken.pop()} belongs beside options, not among them", code="duplicate")
        return value

    @model_validator(mode="after")
    def _takes_its_options(self) -> Self:
        optimizers.check(self.name, lr=self.lr, weight_decay=self.weight_decay, options=self.options)
        return self


class ScheduleRecipe(Settings):
    """How the learning rate changes."""

    kind: Literal["constant", "step", "cosine", "plateau"] = "constant"
    milestones: tuple[Positive, ...] = ()
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warmup: Amount = 0.0
    patience: Positive = 5

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind == "step") != bool(self.milestones):
            raise ArgumentError("milestones belong to kind: step, and it needs them", code="settings-conflict")
        if self.warmup and self.kind != "cosine":
            raise ArgumentError("warmup belongs to kind: cosine", code="does-not-apply")
        return self


class EngineRecipe(Settings):
    """Where and how it runs. What is ``auto`` is chosen by measurement and written into the record."""

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

    @field_validator("compile", "cuda_graph", mode="before")
    @classmethod
    def _yaml_takes_on_for_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

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
        if self.device.startswith("cpu:"):
            raise ArgumentError(f"device: {self.device} cannot be: CPUs have no numbers; write cpu", code="device")
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
