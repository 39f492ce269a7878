"""Classification: one label of several for every sample."""

from typing import TYPE_CHECKING

from trainability.tasks.base import Chance, Loss, Metric, Task
from trainability.tasks.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
def classification() -> Task:
    """Cross-entropy of logits ``(N, classes)`` and labels ``(N,)``, and the accuracy in percent."""
    accuracy = Metric(
        "accuracy",
        "max",
        _right,
        worst=0.0,
        scale=100,
        unit="%",
        difference="points",
        forms=(".2f", ".1f", ".0f"),
        resolution=0.005,
        limits=(0, 101),
    )
    chance = Chance(_most_frequent, "always naming one class", "one class", margin=5.0)
    return Task("classification", Loss(_cross_entropy, "cross-entropy", "CE", "nats"), (accuracy,), chance)


def _cross_entropy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction="none")


def _right(logits: "Tensor", labels: "Tensor") -> "Tensor":
    return logits.argmax(-1) == labels


def _most_frequent(labels: "Tensor") -> float:
    return 100 * float(labels.bincount().max()) / len(labels)
