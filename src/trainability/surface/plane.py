"""A plane through the weights of a model, its points written into parameters, and weights projected onto it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.surface.directions import Direction


@dataclass(frozen=True)
class PathPoint:
    """Weights projected onto the plane: a and b, and the share of their squared distance that lies in the plane."""

    a: float
    b: float
    explained: float


class Plane:
    """Weights w + a d₁ + b d₂.

    Args:
        parameters: w, by name.
        directions: d₁ and d₂.
    """

    def __init__(self, parameters: Mapping[str, Tensor], directions: Sequence[Direction]) -> None:
        first, second = directions
        self._basis = {n: torch.stack([p.detach(), first[n], second[n]]) for n, p in parameters.items()}

    def write_(self, module: nn.Module, points: Tensor) -> None:
        """Write points ``(E, 2)`` into parameters ``(E, ...)``, or a single one into those of one network."""
        with torch.no_grad():
            for name, basis in self._basis.items():
                target = module.get_parameter(name).data
                ones = torch.ones(len(points), 1, dtype=points.dtype)
                coefficients = torch.cat([ones, points], 1).to(basis)
                if target.is_contiguous():
                    torch.mm(coefficients, basis.flatten(1), out=target.view(len(points), -1))
                else:
                    target.copy_(torch.mm(coefficients, basis.flatten(1)).view(target.shape))

    def project(self, weights: Any, where: str) -> PathPoint:
        """The point next to weights, by least squares.

        Args:
            weights: a module, or a mapping with a tensor for every trained parameter, such as a state dict.
            where: the place of the weights, in messages.
        """
        named = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
        if not isinstance(named, Mapping):
            raise ArgumentTypeError(
                f"{where} is a state dict or a module, not {type(weights).__name__}", code="wrong-type"
            )
        gram, along, distance = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0.0
        for name, basis in self._basis.items():
            value = named.get(name)
            if not isinstance(value, Tensor) or value.shape != basis.shape[1:]:
                found = tuple(value.shape) if isinstance(value, Tensor) else "missing"
                raise ArgumentError(
                    f"{where}: {name} is {found}, and {tuple(basis.shape[1:])} in the model; give weights of the same "
                    "architecture",
                    code="other-weights",
                )
            center, *directions = basis.flatten(1).to("cpu", torch.float64)
            spanned, step = torch.stack(directions), value.detach().to("cpu", torch.float64).flatten() - center
            gram += spanned @ spanned.T
            along += spanned @ step
            distance += float(step @ step)
        a, b = (point := torch.linalg.pinv(gram, hermitian=True) @ along).tolist()
        explained = float(point @ along) / distance if distance else 1.0
        return PathPoint(a, b, min(1.0, explained))
