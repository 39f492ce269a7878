"""Fully connected networks."""

from collections import OrderedDict

from torch import Tensor, nn

from trainability.models.parts import activation, check_sizes
from trainability.nn.shortcut import Add


class ResidualBlock(nn.Module):
    """x + φ(linear(x)), the linear layer keeping the width."""

    def __init__(self, width: int, nonlinearity: str) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.add_module(nonlinearity, activation(nonlinearity))
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        linear, nonlinearity, add = self.children()
        result: Tensor = add(x, nonlinearity(linear(x)))
        return result


def fnn(
    in_features: int,
    depth: int,
    width: int,
    classes: int,
    *,
    nonlinearity: str = "relu",
    batchnorm: bool = False,
    residual: bool = False,
) -> nn.Sequential:
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
    check_sizes(in_features=in_features, depth=depth, width=width, classes=classes)
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number in range(1, depth + 1):
        if residual and number > 1:
            layers.append((f"block{number}", ResidualBlock(width, nonlinearity)))
            continue
        layers.append((f"linear{number}", nn.Linear(in_features if number == 1 else width, width)))
        if batchnorm:
            layers.append((f"norm{number}", nn.BatchNorm1d(width)))
        layers.append((f"{nonlinearity}{number}", activation(nonlinearity)))
    layers.append(("classifier", nn.Linear(width, classes)))
    return nn.Sequential(OrderedDict(layers))
