"""Next tokens: a language model, which predicts each token of a sequence from those before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainability.tasks.base import Chance, Loss, Task, TaskKind
from trainability.tasks.metrics import Metric, accuracy, error
from trainability.tasks.registry import register
from trainability.tasks.sequences import Scored, counts_of, shift_by_one

if TYPE_CHECKING:
    from torch import Tensor


@register("next-token")
@dataclass(frozen=True)
class NextToken(TaskKind):
    """Cross-entropy of logits ``(N, T, tokens)`` and the tokens ``(N, T)`` that the model was given.

    The logits at a place are scored by the token at the next one: targets are not shifted. The token -100 marks what is
    not scored, such as padding. The metrics are the cross-entropy in nats per token, its exponential, the perplexity,
    and the accuracy in percent.

    Args:
        padding: a further token that is not scored
    """

    padding: int | None = None

    def task(self) -> Task:
        """The task."""
        scored = Scored("next-token", self.padding, shift_by_one)
        nats = error("cross_entropy", scored.cross_entropy)
        perplexity = Metric("perplexity", "min", None, worst=float("inf"), meter=lambda: _Perplexity(scored))
        chance = Chance(
            lambda tokens: _entropy(scored.real(tokens)),
            "naming tokens by their frequencies alone",
            "frequencies",
            margin=0.05,
            relative=True,
        )
        loss = Loss(scored.cross_entropy, "cross-entropy", "CE", "nats")
        return Task("next-token", loss, (nats, perplexity, accuracy(scored.right)), chance, check=scored.check)


class _Perplexity:
    """The exponential of the cross-entropy of all tokens."""

    def __init__(self, scored: Scored) -> None:
        self._scored = scored
        self._sum: Any = 0.0
        self._count: Any = 0

    def update(self, outputs: "Tensor", targets: "Tensor") -> None:
        """Take a batch."""
        sums, counts = self._scored.cross_entropy(outputs, targets)
        self._sum, self._count = self._sum + sums.sum(), self._count + counts.sum()

    def compute(self) -> float:
        """The perplexity."""
        return float((self._sum / self._count).exp())


def _entropy(tokens: "Tensor") -> float:
    counts = counts_of(tokens).double()
    p = counts / counts.sum()
    return float(-(p * p.log()).sum())
