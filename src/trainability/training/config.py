"""Settings of a training: of each member of a stack, and those that they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainability.data.augment import Augment
from trainability.entropy import Convention
from trainability.errors import ArgumentError, check_words
from trainability.moments import Neurons
from trainability.tasks import Task, task
from trainability.training.schedules import Schedule


@dataclass(frozen=True)
class Strength:
    """LBE for one member: initial target ``alpha`` in nats, strength ``beta``, and floor of the target in nats."""

    alpha: float = 0.5
    beta: float = 0.2
    alpha_min: float = 0.2


@dataclass(frozen=True)
class Member:
    """Settings of one network of a stack.

    Args:
        seed: of its order of samples, augmentation and dropout.
        lr: learning rate.
        weight_decay: of the weights; LBE's targets have none.
        lbe: the term in its loss, or None.
    """

    seed: int
    lr: float = 1e-3
    weight_decay: float = 0.0
    lbe: Strength | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that the members of a stack share.

    Args:
        epochs: passes over the training set, at least 1.
        batch_size: samples per step and member, over all processes; at least 2.
        optimizer: a name in torch.optim or the pytorch-optimizer package.
        options: of the optimizer, besides the learning rate and weight decay, which are each member's.
        schedule: of the learning rate.
        augmentation: maps images and a generator to images (`trainability.data.augment`).
        task: by which the outputs are scored.
        convention: constant of LBE's entropy, ``"paper"`` or ``"published-code"``.
        neurons: what counts as one for LBE, ``"position"`` or ``"channel"``.
        where: glob of the layers that LBE regularizes; every hidden nonlinearity unless given.
        probes: how often the flow of every layer is measured.
        members: how they run: ``"direct"``, ``"vmap"``, ``"loop"``, ``"streams"``, or ``"auto"``, by measurement.
        compile: ``"on"``, ``"off"``, or ``"auto"``, by measurement where a training is worth it.
        cuda_graph: ``"auto"``, ``"on"`` (an error where a step cannot be recorded) or ``"off"``.

    Raises:
        ValueError: a number too small, or a word that is none of these.

    >>> TrainingConfig(epochs=1, batch_size=64, members="vmapp")
    Traceback (most recent call last):
    trainability.errors.ArgumentError: members is 'vmapp'; did you mean 'vmap'? choose from 'auto', 'direct', ...
    """

    epochs: int
    batch_size: int
    optimizer: str = "adam"
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augment | None = None
    task: Task = field(default_factory=lambda: task("classification"))
    convention: Convention = "paper"
    neurons: Neurons = "position"
    where: str | None = None
    probes: int = 20
    members: Literal["auto", "direct", "vmap", "loop", "streams"] = "auto"
    compile: Literal["auto", "on", "off"] = "off"
    cuda_graph: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ArgumentError(
                f"epochs must be at least 1 and batch_size at least 2; they are {self.epochs} and {self.batch_size}",
                code="out-of-range",
            )
        check_words(self, "members", "compile", "cuda_graph", "convention", "neurons")
