"""Labels of tokens: one of several for each token of a sequence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainability.tasks.base import Chance, Loss, Task, TaskKind
from trainability.tasks.metrics import accuracy
from trainability.tasks.registry import register
from trainability.tasks.sequences import Scored, counts_of, no_shift

if TYPE_CHECKING:
    from torch import Tensor


@register("tokens")
@dataclass(frozen=True)
class Tokens(TaskKind):
    """Cross-entropy of logits ``(N, T, classes)`` and labels ``(N, T)`` over all tokens, and the accuracy in percent.

    The label -100 is that of tokens that are not scored, such as padding.

    Args:
        padding: a further label of tokens that are not scored
    """

    padding: int | None = None

    def task(self) -> Task:
        """The task."""
        scored = Scored("tokens", self.padding, no_shift)
        chance = Chance(
            lambda labels: _most_frequent(scored.real(labels)), "always naming one class", "one class", margin=5.0
        )
        loss = Loss(scored.cross_entropy, "cross-entropy", "CE", "nats")
        return Task("tokens", loss, (accuracy(scored.right),), chance, check=scored.check)


def _most_frequent(labels: "Tensor") -> float:
    counts = counts_of(labels)
    return 100 * float(counts.max() / counts.sum())
