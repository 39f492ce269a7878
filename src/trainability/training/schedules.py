"""Schedules of the learning rate by name. Nothing here loads torch before one is made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainability.errors import check_words

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Schedule:
    """Schedule of the learning rate.

    ``constant``; ``step``: times ``gamma`` after each of ``milestones`` (epochs); ``cosine``: up linearly over
    ``warmup`` epochs and down to zero at the end; ``plateau``: times ``gamma`` after more than ``patience`` epochs
    without a better validation score.
    """

    kind: Literal["constant", "step", "cosine", "plateau"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    patience: int = 5

    def __post_init__(self) -> None:
        check_words(self, "kind")

    @property
    def depends_on_length(self) -> bool:
        """True where every step depends on the number of epochs, so that a training cannot be made longer."""
        return self.kind == "cosine"

    def of(
        self, optimizer: "Optimizer", epochs: int, steps_per_epoch: int, direction: Literal["max", "min"] = "max"
    ) -> "LRScheduler | None":
        """Return torch's scheduler for one optimizer; it is stepped every step, and that for a plateau every epoch.

        ``direction`` is that of the score by which a plateau is seen.
        """
        from torch.optim.lr_scheduler import (
            CosineAnnealingLR,
            LinearLR,
            MultiStepLR,
            ReduceLROnPlateau,
            SequentialLR,
        )

        total = epochs * steps_per_epoch
        if self.kind == "step":
            return MultiStepLR(optimizer, [m * steps_per_epoch for m in self.milestones], self.gamma)
        if self.kind == "plateau":
            return ReduceLROnPlateau(optimizer, mode=direction, factor=self.gamma, patience=self.patience)
        if self.kind == "cosine":
            warmup = round(self.warmup * steps_per_epoch)
            down = CosineAnnealingLR(optimizer, T_max=max(1, total - warmup))
            if not warmup:
                return down
            up = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1) if warmup > 1 else None
            return SequentialLR(optimizer, [up, down], [warmup]) if up else down
        return None
