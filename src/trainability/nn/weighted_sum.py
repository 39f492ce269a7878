"""A sum with fixed weights, as shaping puts it in the place of an addition of branches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, check_list, check_number, check_real_tensor


class WeightedSum(nn.Module):
    """w₁ x₁ + w₂ x₂ + ..., with fixed weights, which are part of ``state_dict``.

    >>> WeightedSum([0.6, 0.8])(torch.ones(1), torch.ones(1))
    tensor([1.4000])
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = _checked(weights)

    def forward(self, *summands: Tensor) -> Tensor:
        """Add tensors of one shape."""
        if len(summands) != len(self.weights):
            raise ArgumentError(
                f"a sum with {len(self.weights)} weights takes as many tensors, not {len(summands)}",
                code="counts-differ",
            )
        total = summands[0] * self.weights[0]
        for weight, summand in zip(self.weights[1:], summands[1:], strict=True):
            total = total + summand * weight
        return total

    def extra_repr(self) -> str:
        """The weights."""
        return ", ".join(f"{w:.6g}" for w in self.weights)

    def get_extra_state(self) -> Tensor:
        """The weights."""
        return torch.tensor(self.weights, dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Take the weights of a state."""
        check_real_tensor("the state of a sum", state)
        self.weights = _checked(state.tolist())


def _checked(weights: Any) -> tuple[float, ...]:
    check_list("the weights of a sum", weights)
    for weight in weights:
        check_number("a weight of a sum", weight)
    return tuple(map(float, weights))
