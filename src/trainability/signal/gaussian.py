"""Integrals over the standard normal distribution, exact to rounding for functions that are smooth between kinks."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainability.errors import ArgumentError, ArgumentTypeError

REACH = 9.5  # beyond it lies 2e-21 of the normal distribution
NODES = 16


@functools.cache
def gauss_legendre(nodes: int = NODES) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on [-1, 1], from the eigenvalues of its Jacobi matrix.

    Reference: Golub and Welsch (1969).

    >>> x, w = gauss_legendre(3)
    >>> round(float(x[2]) ** 2, 12), round(float(w[1]), 12)
    (0.6, 0.888888888889)
    """
    k = torch.arange(1, nodes, dtype=torch.float64, device="cpu")
    beside = k / (4 * k * k - 1).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return x, 2 * vectors[0] ** 2


def edges(kinks: Tensor, width: float, grading: float | None = None, finest: float = 1e-9) -> Tensor:
    """Panels of the real line for rows of kinks ``(..., K)``: equal ones, split at every kink, as ``(..., edges)``.

    ``grading``: towards every kink the panels shrink by that factor at a time, down to ``finest`` of a panel, for
    functions that change quickly near it without having a kink there.
    """
    count = max(2, math.ceil(2 * REACH / width))
    even = torch.linspace(-REACH, REACH, count + 1, dtype=torch.float64, device="cpu")
    parts = [even.expand(*kinks.shape[:-1], count + 1), kinks]
    if grading is not None:
        count = max(1, math.ceil(-math.log(finest) / math.log(grading)))
        steps = width * grading ** -torch.arange(count, dtype=torch.float64, device="cpu")
        around = torch.cat([-steps, steps])
        parts.append((kinks.unsqueeze(-1) + around).flatten(-2))
    return torch.cat(parts, -1).clamp(-REACH, REACH).sort(-1).values


def normal_rule(panels: Tensor, nodes: int = NODES) -> tuple[Tensor, Tensor]:
    """Points x and weights w, both ``(..., (edges - 1) nodes)``, with E f(X) = sum of w f(x) for standard normal X."""
    x, w = gauss_legendre(nodes)
    half = panels.diff(dim=-1).unsqueeze(-1) / 2
    middle = (panels[..., 1:] + panels[..., :-1]).unsqueeze(-1) / 2
    points = (middle + half * x).flatten(-2)
    density = torch.exp(-0.5 * points * points) / math.sqrt(2 * math.pi)
    return points, (half * w).flatten(-2) * density


def expectation(
    function: Callable[[Tensor], Tensor], kinks: Sequence[float] = (), *, tolerance: float = 1e-13
) -> float:
    """E f(X) for a standard normal X.

    Panels of 16 Gauss-Legendre nodes, split at the kinks and halved until the value stands still.

    Args:
        function: elementwise, on float64 tensors.
        kinks: where f or one of its derivatives jumps.
        tolerance: relative change at which it stops.

    Raises:
        ValueError: f is not finite, or the value does not settle, as for a kink that is not named.

    >>> round(expectation(lambda x: x**4), 12)
    3.0
    >>> round(expectation(torch.relu, kinks=[0.0]) * math.sqrt(2 * math.pi), 12)
    1.0
    """
    if not callable(function):
        raise ArgumentTypeError(
            f"the function must be one of tensors, element by element, not {function!r}", code="function"
        )
    if not isinstance(kinks, list | tuple) or not all(isinstance(kink, int | float) for kink in kinks):
        raise ArgumentTypeError(f"kinks is a list of numbers, not {kinks!r}", code="kinks")
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ArgumentError(f"the tolerance is a number of 0 or more, not {tolerance!r}", code="tolerance")
    split = torch.tensor(list(kinks), dtype=torch.float64, device="cpu")
    before = math.inf
    for halvings in range(8):
        x, w = normal_rule(edges(split, 2.0**-halvings))
        try:
            values = function(x)
        except Exception as error:  # code of the user's
            raise ArgumentError(
                f"the function fails on float64 numbers ({type(error).__name__}: {error})", code="function-fails"
            ) from error
        if not isinstance(values, Tensor) or values.shape != x.shape:
            raise ArgumentError("the function must return a tensor of the shape it is given", code="not-elementwise")
        value = float((w * values).sum())
        if not math.isfinite(value):
            raise ArgumentError(
                f"the function is not finite at x = {float(x[~values.isfinite()][0]):.6g}", code="not-finite"
            )
        if abs(value - before) <= tolerance * max(float((w * values.abs()).sum()), 1e-300):
            return value
        before = value
    raise ArgumentError(
        "the integral does not settle; name the points where the function or its derivative jumps as kinks",
        code="not-settled",
    )
