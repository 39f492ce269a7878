"""What is to be trained: the members of a stack, and what they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainability.data.augment import Augment
from trainability.entropy import Convention
from trainability.moments import Neurons
from trainability.training.optimisers import Schedule


@dataclass(frozen=True)
class Strength:
    """LBE for one member: initial target, strength and floor."""

    alpha: float = 0.5
    beta: float = 0.2
    alpha_min: float = 0.2


@dataclass(frozen=True)
class Member:
    """What one network of a stack has to itself, besides its weights."""

    seed: int
    lr: float = 1e-3
    weight_decay: float = 0.0
    lbe: Strength | None = None


@dataclass(frozen=True)
class Plan:
    """What the members of a stack share."""

    epochs: int
    batch_size: int
    optimizer: str = "adam"
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augment | None = None
    convention: Convention = "paper"
    neurons: Neurons = "position"
    probes: int = 20
    members: Literal["auto", "direct", "vmap", "loop", "streams"] = "auto"
    compile: Literal["auto", "on", "off"] = "off"
    cuda_graph: Literal["auto", "on", "off"] = "auto"
