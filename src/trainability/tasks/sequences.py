"""Sequences whose tokens are scored one by one, as sums and counts, so that padding does not count."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainability.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # as torch and Hugging Face mark what is not scored
Shift = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]


def no_shift(logits: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
    """The logits at a place and its own label."""
    return logits, labels


def shift_by_one(logits: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
    """The logits at a place and the label of the next one."""
    return logits[:, :-1], labels[:, 1:]


@dataclass(frozen=True)
class Scored:
    """The scores of logits ``(N, T, C)`` and labels ``(N, T)``, as sums and counts ``(N,)`` over the tokens of each.

    Nothing here depends on how many tokens are padding but the numbers themselves, so it can be compiled and recorded.

    Args:
        task: its name, for messages.
        padding: a label that is not scored, beside -100.
        shift: which logits are scored by which labels.
    """

    task: str
    padding: int | None
    shift: Shift

    def cross_entropy(self, logits: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
        """Cross-entropy in nats, and tokens."""
        from torch.nn import functional

        logits, labels = self._pair(logits, labels)
        losses = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(labels.shape).sum(1), (labels != IGNORED).sum(1)

    def right(self, logits: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
        """Tokens whose label has the largest logit, and tokens."""
        logits, labels = self._pair(logits, labels)
        return (logits.argmax(-1) == labels).sum(1), (labels != IGNORED).sum(1)

    def real(self, labels: "Tensor") -> "Tensor":
        """The labels that are scored, one after another."""
        found = self._pair(labels.unsqueeze(-1), labels)[1]
        return found[found != IGNORED]

    def check(self, logits: Any, labels: Any) -> None:
        """Raise ArgumentError for logits and labels that are not ``(N, T, C)`` and ``(N, T)`` within them."""
        import torch

        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.long or labels.dim() != 2:
            what = (
                f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
            )
            raise ArgumentError(
                f"{self.task} takes targets of torch.int64, (samples, tokens), and the targets are {what}",
                code="targets",
            )
        if logits.dim() != 3 or logits.shape[:2] != labels.shape:
            raise ArgumentError(
                f"{self.task} takes outputs (samples, tokens, classes), and the model returns {tuple(logits.shape)} "
                f"for targets {tuple(labels.shape)}",
                code="outputs",
            )
        real = self.real(labels)
        low, high = (int(real.min()), int(real.max())) if len(real) else (0, 0)
        if low < 0 or high >= logits.shape[2]:
            raise ArgumentError(
                f"the targets go from {low} to {high}, and the model returns {logits.shape[2]} logits for each token; "
                f"they count from 0, and {IGNORED} is not scored",
                code="targets",
            )
        if self.shift(logits, labels)[1].shape[1] == 0:
            raise ArgumentError("a sequence of one token has no next one; give longer ones", code="targets")

    def _pair(self, logits: "Tensor", labels: "Tensor") -> "tuple[Tensor, Tensor]":
        """Logits and the labels by which they are scored, with -100 for all padding."""
        logits, labels = self.shift(logits, labels)
        return logits, labels if self.padding is None else labels.masked_fill(labels == self.padding, IGNORED)


def counts_of(labels: "Tensor") -> "Tensor":
    """How often each label is there, of those that are."""
    found: Tensor = labels.unique(return_counts=True)[1]
    return found
