"""Fully connected networks."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainability.models.registry import Architecture, check_sizes, register
from trainability.nn.names import check_nonlinearity

if TYPE_CHECKING:
    from torch import nn


@register("fnn")
@dataclass(frozen=True)
class FNN(Architecture):
    """A fully connected network.

    Args:
        depth: hidden layers
        width: neurons of each
        nonlinearity: relu, leaky_relu, tanh, selu, elu, gelu, silu, softplus or sigmoid
        batchnorm: BatchNorm between every hidden linear layer and its nonlinearity
        residual: an identity shortcut around every hidden layer but the first
    """

    depth: int = 30
    width: int = 64
    nonlinearity: str = "relu"
    batchnorm: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        check_sizes(depth=self.depth, width=self.width)
        check_nonlinearity(self.nonlinearity)

    def built_in(self) -> list[str]:
        """The remedies that these settings amount to."""
        return ["batchnorm"] * self.batchnorm + ["residual"] * self.residual

    def build(self, shape: tuple[int, ...], outputs: int) -> "nn.Module":
        """The network for flattened inputs of that shape."""
        return fnn(
            math.prod(shape),
            self.depth,
            self.width,
            outputs,
            nonlinearity=self.nonlinearity,
            batchnorm=self.batchnorm,
            residual=self.residual,
        )


def fnn(
    in_features: int,
    depth: int,
    width: int,
    classes: int,
    *,
    nonlinearity: str = "relu",
    batchnorm: bool = False,
    residual: bool = False,
) -> "nn.Sequential":
    """Build a fully connected network with ``depth`` hidden layers of ``width`` and a linear classifier.

    Args:
        in_features: entries of one input, which is flattened.
        depth: hidden layers, at least 1.
        width: neurons of each.
        classes: outputs.
        nonlinearity: by name.
        batchnorm: BatchNorm between every hidden linear layer and its nonlinearity.
        residual: an identity shortcut around every hidden layer but the first.

    Raises:
        ValueError: a size below 1, or an unknown nonlinearity.

    >>> [name for name, _ in fnn(64, depth=2, width=16, classes=10).named_children()]
    ['flatten', 'linear1', 'relu1', 'linear2', 'relu2', 'classifier']
    """
    from torch import nn

    from trainability.nn.nonlinearity import nonlinearity_of
    from trainability.nn.shortcut import ResidualBlock

    check_sizes(in_features=in_features, depth=depth, width=width, classes=classes)
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number in range(1, depth + 1):
        if residual and number > 1:
            layers.append((f"block{number}", ResidualBlock(width, nonlinearity)))
            continue
        layers.append((f"linear{number}", nn.Linear(in_features if number == 1 else width, width)))
        if batchnorm:
            layers.append((f"norm{number}", nn.BatchNorm1d(width)))
        layers.append((f"{nonlinearity}{number}", nonlinearity_of(nonlinearity)))
    layers.append(("classifier", nn.Linear(width, classes)))
    return nn.Sequential(OrderedDict(layers))
