"""A fully connected layer with an identity shortcut around it."""

from torch import Tensor, nn

from trainability.nn.nonlinearity import nonlinearity_of
from trainability.nn.shortcut import Add


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
