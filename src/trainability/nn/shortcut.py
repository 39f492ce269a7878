"""Sums at the end of residual branches, plain or with a learned scale, and the plainest block that has one."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, check_choice, check_number, check_whole
from trainability.introspect.weight_layers import weight_layout
from trainability.nn.names import Scale
from trainability.nn.nonlinearity import nonlinearity_of


class Add(nn.Module):
    """The sum of two branches, as a module of its own, so that it can be seen and exchanged."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        total: Tensor = first + second
        return total


class ScaledAdd(nn.Module):
    """x + s · f(x) with a learned number s.

    >>> ScaledAdd(0.5)(torch.ones(1), torch.ones(1)).item()
    1.5
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        check_number("scale", scale)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add a branch, scaled, to a tensor of its shape."""
        return x + self.scale * branch


class ResidualBlock(nn.Module):
    """x + φ(linear(x)), the linear layer keeping the width."""

    def __init__(self, width: int, nonlinearity: str) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.add_module(nonlinearity, nonlinearity_of(nonlinearity))
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        linear, nonlinearity, add = self.children()
        result: Tensor = add(x, nonlinearity(linear(x)))
        return result


def fixup_factors(layers: Sequence[nn.Module], branches: Sequence[Sequence[nn.Module]]) -> dict[nn.Module, float]:
    """The factor of He's weights for each weight layer of a model whose branches have no normalization.

    It is 0 for the last of the m weight layers of a branch and L^(-1 / (2m - 2)) for the others, with L branches; 0 for
    the last layer of the model; and 1 for the rest.

    Reference: Zhang, Dauphin and Ma (2019), section 3.

    >>> a, b, c, last = (nn.Linear(2, 2) for _ in range(4))
    >>> list(fixup_factors([a, b, c, last], [[b, c]]).values())
    [1.0, 1.0, 0.0, 0.0]
    """
    if not layers:
        raise ArgumentError("a network without weight layers has no weights to set", code="empty")
    factors = dict.fromkeys(layers, 1.0) | {layers[-1]: 0.0}
    for inside in branches:
        factors |= dict.fromkeys(inside[:-1], len(branches) ** (-1 / max(1, 2 * len(inside) - 2)))
        factors |= dict.fromkeys(inside[-1:], 0.0)
    return factors


def fixup_(model: nn.Module, branches: Sequence[nn.Module]) -> None:
    """Set the weights of a network by `fixup_factors`, in place, and every bias to zero."""
    layers = [m for m in model.modules() if weight_layout(m) is not None]
    factors = fixup_factors(layers, [[m for m in branch.modules() if m in layers] for branch in branches])
    for layer, factor in factors.items():
        with torch.no_grad():
            weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
            if weight is not None:
                nn.init.kaiming_normal_(weight).mul_(factor)
            if bias is not None:
                bias.zero_()


def shortcut(scale: Scale, branches: int) -> Add | ScaledAdd:
    """The sum for one of so many branches; the kinds are those of `trainability.Residual`."""
    check_choice("scale", scale, get_args(Scale))
    check_whole("branches", branches)
    if scale == "identity":
        return Add()
    return ScaledAdd({"skipinit": 1 / math.sqrt(branches), "rezero": 0.0, "fixup": 1.0}[scale])
