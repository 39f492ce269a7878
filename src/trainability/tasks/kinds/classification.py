"""Classification: one label of several for every sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainability.errors import ArgumentError
from trainability.tasks.base import Chance, Loss, Task, TaskKind
from trainability.tasks.metrics import accuracy
from trainability.tasks.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("classification")
@dataclass(frozen=True)
class Classification(TaskKind):
    """Cross-entropy of logits ``(N, classes)`` and labels ``(N,)``, and the accuracy in percent.

    Of a model that returns more, as those of Hugging Face do, the logits are what it calls ``logits``. So sequences are
    classified by it as well: the inputs are then a mapping such as ``{"input_ids": ..., "attention_mask": ...}``, which
    goes to the model as arguments of these names, and what a mask does is the model's own affair.
    """

    def task(self) -> Task:
        """The task."""
        chance = Chance(_most_frequent, "always naming one class", "one class", margin=5.0)
        loss = Loss(_cross_entropy, "cross-entropy", "CE", "nats")
        return Task("classification", loss, (accuracy(_right),), chance, check=_check)


def _cross_entropy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction="none")


def _right(logits: "Tensor", labels: "Tensor") -> "Tensor":
    return logits.argmax(-1) == labels


def _most_frequent(labels: "Tensor") -> float:
    return 100 * float(labels.bincount().max()) / len(labels)


def _check(logits: "Tensor", labels: "Tensor") -> None:
    """Raise ArgumentError for logits and labels that are not ``(N, classes)`` and ``(N,)`` within them."""
    import torch

    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.long or labels.dim() != 1:
        advice = "give whole numbers, or another task or loss"
        if isinstance(labels, torch.Tensor) and labels.dim() == 2:
            advice = "leave out the last dimension" if labels.shape[1] == 1 else "take argmax(1), if they are one-hot"
        what = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ArgumentError(
            f"classification takes labels of torch.int64, one for each sample, and the targets are {what}; {advice}",
            code="targets",
        )
    if logits.dim() != 2 or len(logits) != len(labels):
        raise ArgumentError(
            f"classification takes outputs (samples, classes), and the model returns {tuple(logits.shape)} for "
            f"{len(labels)} samples",
            code="outputs",
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ArgumentError(
            f"the labels go from {low} to {high}, and the model returns {logits.shape[1]} logits; labels count from 0",
            code="targets",
        )
