"""The remedies that `compare` knows by name, each as model options, a change by `apply_` and LBE or not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainability.remedies import DKS, EOC, TAT, Init, Remedy


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. ``base`` is the arm that it differs from in one thing, ``what`` that thing in words."""

    what: str
    base: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    remedy: Remedy | None = None
    lbe: bool = False


ARMS: dict[str, Arm] = {
    "default": Arm("PyTorch's default initialisation"),
    "he": Arm("He initialisation", "default", remedy=Init("he")),
    "orthogonal": Arm("orthogonal initialisation with the gain of ReLU", "default", remedy=Init("orthogonal")),
    "eoc": Arm("weights and biases at the edge of chaos", "default", remedy=EOC()),
    "dks": Arm("activations and weights shaped by DKS", "default", remedy=DKS()),
    "tat": Arm("activations and weights shaped by TAT", "default", remedy=TAT()),
    "lbe": Arm("LBE in the loss", "default", lbe=True),
    "he+lbe": Arm("LBE in the loss", "he", remedy=Init("he"), lbe=True),
    "tat+lbe": Arm("LBE in the loss", "tat", remedy=TAT(), lbe=True),
    "batchnorm": Arm("BatchNorm before every nonlinearity", "default", model={"batchnorm": True}),
    "residual": Arm("an identity shortcut around every layer", "default", model={"residual": True}),
}
