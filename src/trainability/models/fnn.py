"""Fully connected ReLU networks."""

from collections import OrderedDict

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + relu(linear(x)), the linear layer keeping the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        result: Tensor = x + self.relu(self.linear(x))
        return result


def fnn(
    in_features: int, depth: int, width: int, classes: int, *, batchnorm: bool = False, residual: bool = False
) -> nn.Sequential:
    """Build a fully connected ReLU network with ``depth`` hidden layers of ``width`` and a linear classifier.

    Args:
        in_features: entries of one input, which is flattened.
        depth: hidden layers, at least 1.
        width: neurons of each.
        classes: outputs.
        batchnorm: BatchNorm between every hidden linear layer and its ReLU.
        residual: an identity shortcut around every hidden layer but the first.

    Raises:
        ValueError: a size below 1.

    >>> [name for name, _ in fnn(64, depth=2, width=16, classes=10).named_children()]
    ['flatten', 'linear1', 'relu1', 'linear2', 'relu2', 'classifier']
    """
    for name, value in (
        ("in_features", in_features),
        ("depth", depth),
        ("width", width),
        ("classes", classes),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number in range(1, depth + 1):
        if residual and number > 1:
            layers.append((f"block{number}", ResidualBlock(width)))
            continue
        layers.append((f"linear{number}", nn.Linear(in_features if number == 1 else width, width)))
        if batchnorm:
            layers.append((f"norm{number}", nn.BatchNorm1d(width)))
        layers.append((f"relu{number}", nn.ReLU()))
    layers.append(("classifier", nn.Linear(width, classes)))
    return nn.Sequential(OrderedDict(layers))
