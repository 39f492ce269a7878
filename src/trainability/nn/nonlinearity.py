"""Nonlinearities by name, as modules."""

from torch import nn

from trainability.introspect.activation_table import TABLE
from trainability.nn.names import check_nonlinearity


def nonlinearity_of(name: str) -> nn.Module:
    """The nonlinearity of that name, as a module.

    >>> nonlinearity_of("tanh")
    Tanh()
    """
    check_nonlinearity(name)
    module: nn.Module = getattr(nn, TABLE[name].module)()
    return module
