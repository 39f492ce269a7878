"""Per-location normalization of inputs."""

from typing import Literal

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, ArgumentTypeError

Append = Literal["one", "size"] | None


def per_location_normalize(x: Tensor, append: Append = "one", dim: int = 1) -> Tensor:
    """Scale the channels at every location to mean square 1.

    Kernel theory wants inputs of mean square 1 at every location. ``append="one"`` adds a channel of ones first, so
    that the size of what was there is not lost and a location of zeros is no division by zero; ``"size"`` adds the
    root mean square of the channels instead; ``None`` adds nothing, and leaves locations of zeros at zero.

    Args:
        x: ``(B, C, ...)``, floating point.
        append: what to add as a further channel.
        dim: the channels' dimension.

    Returns:
        ``(B, C + 1, ...)``, or ``(B, C, ...)`` for ``None``.

    Reference: Martens et al. (2021), "Per-location normalization".

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> per_location_normalize(x, append=None).square().mean().item()
    1.0
    >>> per_location_normalize(torch.zeros(1, 2))
    tensor([[0.0000, 0.0000, 1.7321]])
    """
    if not x.is_floating_point():
        raise ArgumentTypeError(
            f"per-location normalization takes floating-point inputs, not {x.dtype}", code="input-dtype"
        )
    if not -x.dim() <= dim < x.dim() or x.dim() < 2:
        raise ArgumentError(f"inputs of shape {tuple(x.shape)} have no channels at dimension {dim}", code="input-shape")
    if append == "one":
        x = torch.cat([x, torch.ones_like(x.narrow(dim, 0, 1))], dim)
    elif append == "size":
        x = torch.cat([x, x.square().mean(dim, keepdim=True).sqrt()], dim)
    elif append is not None:
        raise ArgumentError(f"append is 'one', 'size' or None, not {append!r}", code="unknown-choice")
    size = x.square().mean(dim, keepdim=True).sqrt()
    return x / torch.where(size > 0, size, torch.ones_like(size))


class PLN(nn.Module):
    """Per-location normalization as the first module of a network, or as a transform of a data set.

    The network behind it takes one channel more, unless ``append`` is None.

    >>> PLN()(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 4, 4, 4])
    """

    def __init__(self, append: Append = "one", dim: int = 1) -> None:
        super().__init__()
        self.append = append
        self.dim = dim
        per_location_normalize(torch.ones(1, 1), append, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(B, C, ...)``."""
        return per_location_normalize(x, self.append, self.dim)

    def extra_repr(self) -> str:
        """The settings."""
        return f"append={self.append!r}, dim={self.dim}"
