"""LBE for a stack: the term of every member, with its own strength and targets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainability.entropy import Convention, entropy_constant
from trainability.errors import ArgumentError
from trainability.lbe.loss import RegularizedLoss
from trainability.lbe.ranks import scaled_variances
from trainability.lbe.statistics import BatchStatistics, merge


class StackLBE(nn.Module):
    """`trainability.LBE` of every member of a stack at once.

    Args:
        paths: the names of the readings, L of them.
        alpha: initial target of each member, E numbers; learned per member and layer.
        beta: strength for each member; 0 for one without the term.
        alpha_min: floor of the targets for each member.
        convention: ``"paper"`` or ``"published-code"``.
        like: a parameter whose device and precision alpha takes.

    Attributes:
        alpha: ``(E, L)``.
        lbe: L_BE of the last call, ``(E,)``.
        mean_losses: the losses of the last call over all ranks, ``(E,)``.

    Reference: Peer et al. (2022), eq. 3 to 6.
    """

    beta: Tensor
    alpha_min: Tensor

    def __init__(
        self,
        paths: Sequence[str],
        alpha: Sequence[float],
        beta: Sequence[float],
        alpha_min: Sequence[float],
        *,
        convention: Convention = "paper",
        like: Tensor,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "dtype": like.dtype if like.dtype == torch.float64 else torch.float32,
            "device": like.device,
        }
        self.paths = tuple(paths)
        self.alpha = nn.Parameter(torch.tensor([[a] * len(paths) for a in alpha], **options))
        self.register_buffer("beta", torch.tensor(beta, **options))
        self.register_buffer("alpha_min", torch.tensor(alpha_min, **options).unsqueeze(1))
        self._constant = entropy_constant(convention)
        self._halved = convention == "published-code"
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self.mean_losses: Tensor | None = None
        self.lbe: Tensor | None = None

    def forward(self, losses: Tensor, readings: Sequence[BatchStatistics]) -> Tensor:
        """Return each member's loss · (1 + L_BE), ``(E,)``, from losses ``(E,)`` and moments ``(E, readings, n)``."""
        for reading in readings:
            if reading.count < 2:
                raise ArgumentError(
                    f"{reading.names[0]} has one sample per neuron; LBE needs a batch of two at the least",
                    code="one-sample",
                )
        runs = merge(readings, dim=1)
        variances, scales, self.mean_losses = scaled_variances(runs, losses.detach(), self._constant)
        rows = tuple(self.paths.index(name.partition("#")[0]) for run in runs for name in run.names)
        alpha = self.alpha if rows == tuple(range(len(self.paths))) else self.alpha[:, self._index(rows)]
        totals: Tensor
        settings = (self.beta, self.alpha_min, self._halved, scales)
        totals, self.lbe, _ = RegularizedLoss.apply(losses, self.mean_losses, alpha, *settings, *variances)
        return totals

    def _index(self, rows: tuple[int, ...]) -> Tensor:
        """The targets of readings of which some are of one layer; kept, as a recorded step cannot send it."""
        if rows not in self._indices:
            self._indices[rows] = torch.tensor(rows, device=self.alpha.device)
        return self._indices[rows]
