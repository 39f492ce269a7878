"""Nonlinearities by name, as modules."""

from torch import nn

from trainability.nn.names import check_nonlinearity

_CLASSES: dict[str, type[nn.Module]] = {
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


def nonlinearity_of(name: str) -> nn.Module:
    """The nonlinearity of that name, as a module.

    >>> nonlinearity_of("tanh")
    Tanh()
    """
    check_nonlinearity(name)
    return _CLASSES[name]()
