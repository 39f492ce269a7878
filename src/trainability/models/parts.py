"""Pieces that the architectures share."""

from torch import nn

from trainability.errors import ArgumentError

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation(name: str) -> nn.Module:
    """The nonlinearity of that name, as a module.

    >>> activation("tanh")
    Tanh()
    """
    if name not in _ACTIVATIONS:
        raise ArgumentError(
            f"there is no activation {name!r} for a model; choose from {', '.join(ACTIVATIONS)}", code="unknown-choice"
        )
    return _ACTIVATIONS[name]()


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, not {value}", code="out-of-range")
