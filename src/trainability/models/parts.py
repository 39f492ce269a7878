"""Pieces that the architectures share."""

from torch import nn

from trainability.errors import ArgumentError
from trainability.introspect.activation_table import CHOICES, TABLE

ACTIVATIONS = CHOICES


def activation(name: str) -> nn.Module:
    """The nonlinearity of that name, as a module.

    >>> activation("tanh")
    Tanh()
    """
    if name not in CHOICES:
        raise ArgumentError(
            f"there is no activation {name!r} for a model; choose from {', '.join(CHOICES)}", code="unknown-choice"
        )
    module: nn.Module = getattr(nn, TABLE[name].module)()
    return module


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, not {value}", code="out-of-range")
