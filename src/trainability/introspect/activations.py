"""The modules and functions of a model that are activations."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import activation

from trainability.introspect.activation_table import CALLED, TABLE, ActivationRow
from trainability.introspect.run import observing

MODULES: dict[type[nn.Module], ActivationRow] = {getattr(nn, row.module): row for row in TABLE.values() if row.module}
FUNCTIONS: dict[Callable[..., Any], str] = {
    function: name
    for owner in (F, torch, Tensor)
    for name in CALLED
    for function in (getattr(owner, name, None), getattr(owner, name + "_", None))
    if function is not None
}


def is_nonlinearity(module: nn.Module) -> bool:
    """True for an elementwise nonlinearity: one of torch, or of a class from a file of activations."""
    if any(True for _ in module.children()) or any(parameter.dim() >= 2 for parameter in module.parameters()):
        return False
    defined_in = {cls.__module__ for cls in type(module).__mro__}
    if activation.__name__ in defined_in:
        return any(cls in MODULES for cls in type(module).__mro__)  # and not a softmax
    return any(name.rpartition(".")[2] in ("activations", "activation") for name in defined_in)


def computes_elementwise(module: nn.Module) -> bool:
    """True for a module of the user's own, without parameters, that acts as an elementwise nonlinearity when run.

    >>> class Sine(nn.Module):
    ...     def forward(self, x):
    ...         return torch.sin(30 * x)
    >>> computes_elementwise(Sine()), computes_elementwise(nn.Flatten())
    (True, False)
    """
    tensors = (*module._parameters.values(), *module._buffers.values(), *module.children())
    if any(t is not None for t in tensors) or type(module).__module__.partition(".")[0] == "torch":
        return False
    x = torch.tensor([[0.3, -1.7, 2.2], [-0.4, 1.1, -2.9]])
    changed = x.clone()
    changed[0, 1] = 0.8
    try:
        with observing(module), torch.no_grad():
            y, other, twice, opposite, zero = (module(z.clone()) for z in (x, changed, 2 * x, -x, 0 * x))
            moved = module(x.flip(0, 1).clone()).flip(0, 1)
        alone = torch.equal(y == other, x == changed) and torch.allclose(moved, y)
        straight = torch.allclose(y + opposite, 2 * zero, atol=1e-5) and torch.allclose(twice + zero, 2 * y, atol=1e-5)
    except Exception:  # the module may want any other input
        return False
    return alone and not straight


def called_activation(node: fx.Node) -> str | None:
    """Name of the activation that a traced node calls as a function; None where it calls something else."""
    if node.op == "call_function":
        return FUNCTIONS.get(node.target) if callable(node.target) else None
    name = str(node.target).rstrip("_")
    return name if node.op == "call_method" and name in CALLED else None
