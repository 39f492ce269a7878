"""A task: a loss for every sample, and the metrics by which networks are compared."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from trainability._lazy import Configured
from trainability.errors import UnsupportedModelError, check_choice
from trainability.tasks.metrics import Metric, PerSample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """The loss of every sample, whose mean is minimized, with its name, its symbol in formulas, and its unit.

    ``by_member`` is for a loss that may not be given the samples of several networks at once: somebody's own, which
    may compare samples with one another, or give their mean, ``()``.
    """

    of: PerSample
    name: str
    symbol: str
    unit: str = ""
    by_member: bool = False


@dataclass(frozen=True)
class Chance:
    """The main metric of the best answer that does not look at the input.

    Args:
        of: that of the targets ``(N, ...)`` of a data set.
        answer: in words, such as "always naming one class".
        label: in figures, such as "one class".
        margin: how much better than it a network is that has learned something.
        relative: the margin is a fraction of what ``of`` tells.
    """

    of: Callable[[Any], float]
    answer: str
    label: str
    margin: float
    relative: bool = False

    def least_gain(self, chance: float) -> float:
        """The margin as a difference of the metric."""
        return self.margin * abs(chance) if self.relative else self.margin


def prediction_of(outputs: Any) -> "Tensor":
    """The tensor by which the outputs of a model are scored: its logits by name, or else its first real tensor.

    Raises:
        UnsupportedModelError: there is none.

    >>> import torch
    >>> prediction_of({"loss": torch.zeros(2), "logits": torch.ones(2)})
    tensor([1., 1.])
    """
    from torch import Tensor

    from trainability.introspect.hooks import activation_of

    if isinstance(outputs, Tensor):  # the usual case, kept short
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    found = named if isinstance(named, Tensor) else activation_of(outputs)
    if found is None:
        raise UnsupportedModelError(
            "",
            f"it returns {type(outputs).__name__} without a tensor of real numbers; return one that a loss can score",
            code="outputs-not-a-tensor",
        )
    return found


@dataclass(frozen=True)
class Task:
    """The loss and the metrics by which the outputs of a model are scored.

    Args:
        name: of the task.
        loss: what is trained on.
        metrics: at least one; the first is the main one, by which the best is chosen and plateaus are seen.
        chance: what the main metric is without learning, where that is known.
        reads: what the loss and the metrics are given of a model's outputs.
        reconstructs: the targets of a data set by name are its inputs, which then lie in [0, 1].
        check: raises for outputs and targets ``(N, ...)``, as the loss gets them, that do not fit the task.
    """

    name: str
    loss: Loss
    metrics: tuple[Metric, ...]
    chance: Chance | None = None
    reads: Callable[[Any], Any] = prediction_of
    reconstructs: bool = False
    check: Callable[[Any, Any], None] = lambda outputs, targets: None

    @property
    def metric(self) -> Metric:
        """The main metric."""
        return self.metrics[0]

    def losses(self, outputs: Any, targets: Any, seeds: "Sequence[int] | None" = None) -> "Tensor":
        """Mean loss of each member of a stack, ``(E,)``, from its outputs and targets ``(E, B, ...)``.

        ``seeds`` are those of what a loss of one's own draws, one for each member.
        """
        from trainability.tasks.scoring import mean_loss

        return mean_loss(self.loss, self.reads(outputs), targets, seeds)


@dataclass(frozen=True)
class TaskKind(Configured, ABC):
    """The settings of a task, a frozen dataclass whose docstring describes each under ``Args:``.

    Raises:
        ArgumentError: a word that is none of those that the annotation of a setting lists.
    """

    def __post_init__(self) -> None:
        for name, setting in self.settings().items():
            if get_origin(setting.type) is Literal:
                check_choice(name, getattr(self, name), get_args(setting.type))

    @abstractmethod
    def task(self) -> Task:
        """The task that the settings describe."""
