"""L_BE at a point of the plane: the term that an LBE adds to a loss, of the batch entropies there."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from trainability.entropy import entropy_constant, entropy_from_variance, is_activation
from trainability.errors import ArgumentError
from trainability.introspect.hooks import Taps
from trainability.introspect.readings import OneCall
from trainability.lbe.module import LBE
from trainability.moments import careful_statistics, sample_count, samples


class EntropyTerm(OneCall):
    """L_BE of the latest pass of a copy of the model that an LBE was made for, in whatever mode it runs.

    Within it, activations are read; `value` is β · mean (H − max(α_min, |α|))² over readings.

    Args:
        lbe: whose layers, targets and strength are taken as they are now.
        model: the copy.

    Reference: Peer et al. (2022), eq. 3 to 5.
    """

    def __init__(self, lbe: LBE, model: nn.Module) -> None:
        self._lbe, self._neurons, self._channel_dim = lbe, lbe.neurons, lbe.channel_dim
        self._constant = entropy_constant(lbe.convention)
        targets = lbe.alpha.detach().abs().clamp(min=lbe.alpha_min).double()
        self._targets = dict(zip(lbe.selection.paths, targets, strict=True))
        self._errors: list[Tensor] = []
        self._taps = Taps(model, lbe.selection.places, self)

    def begin(self, model: nn.Module) -> None:
        """Forget the pass before."""
        self._errors.clear()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Take the entropy of one activation."""
        if not is_activation(activation):
            return
        x = samples(activation.detach(), self._neurons, self._channel_dim)
        count = sample_count(x)
        if count < 2:
            raise ArgumentError(
                f"{path} has one sample per neuron; batch entropy needs a batch of two at the least, so take another "
                "batch_size",
                code="one-sample",
            )
        entropy = entropy_from_variance(careful_statistics(x)[1], count, self._constant).double().mean()
        self._errors.append(entropy - self._targets[path])

    def value(self) -> Tensor:
        """L_BE of the latest pass."""
        if not self._errors:
            raise ArgumentError("none of the layers of lbe ran; give one made for this model", code="no-readings")
        return self._lbe.beta * torch.stack(self._errors).square().mean()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._taps.remove()
