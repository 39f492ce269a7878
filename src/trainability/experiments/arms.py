"""The remedies that `compare` knows by name, each as model options, an initialisation and LBE or not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainability.remedies import Init


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. ``base`` is the arm that it differs from in one thing, ``what`` that thing in words."""

    what: str
    base: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    init: Init | None = None
    lbe: bool = False


ARMS: dict[str, Arm] = {
    "default": Arm("PyTorch's default initialisation"),
    "he": Arm("He initialisation", "default", init=Init("he")),
    "lbe": Arm("LBE in the loss", "default", lbe=True),
    "he+lbe": Arm("LBE in the loss", "he", init=Init("he"), lbe=True),
    "batchnorm": Arm("BatchNorm before every ReLU", "default", model={"batchnorm": True}),
    "residual": Arm("an identity shortcut around every layer", "default", model={"residual": True}),
}
