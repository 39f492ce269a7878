"""Finding the points where a function or one of its first two derivatives jumps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainability.errors import ArgumentError
from trainability.signal.gaussian import gauss_legendre

_NODES = 16
_SPAN = 24.0  # shaped activations reach little beyond; further out the normal distribution has no weight left


def find_kinks(derivatives: Callable[[Tensor, int], tuple[Tensor, ...]]) -> tuple[tuple[float, ...], float]:
    """Kinks in [-24, 24], and the shortest panel that was needed to resolve the function elsewhere.

    A panel is resolved where the last Legendre coefficients of φ, φ' and φ'' are rounding alone; others are halved.
    What stays unresolved down to the spacing of floating-point numbers is a kink.

    Raises:
        ValueError: there are more than 64, or the function is not finite.
    """
    x, w = gauss_legendre(_NODES)
    last = _legendre(x)[-3:] * w  # the last three coefficients, up to a factor
    # Kinks like to lie at round numbers, where an edge of a panel would hide them.
    low = torch.arange(-_SPAN, _SPAN, 1.0, dtype=torch.float64, device="cpu") - math.pi / 10
    width = 1.0
    resolved: list[tuple[Tensor, float]] = []
    sizes: Tensor | None = None
    while len(low):
        # Panels overlap, so that a kink between an edge and the node next to it is not missed.
        z = low.unsqueeze(1) + width * (1.2 * x + 1) / 2  # (panels, nodes)
        stacked = torch.stack(derivatives(z, 2))  # (3, panels, nodes)
        if not stacked.isfinite().all():
            bad = z[~stacked.isfinite().all(0)][0]
            raise ArgumentError(
                f"the activation or its derivative is not finite at {float(bad):.6g}", code="not-finite"
            )
        if sizes is None:
            sizes = stacked.abs().amax((1, 2)).clamp(min=1e-6).unsqueeze(1)
        rough = ((stacked @ last.T).abs().amax(-1) > 1e-9 * sizes).any(0)
        resolved.append((low[~rough], width))
        low = low[rough]
        if width < 1e-13 or len(low) > 512:
            break
        width /= 2
        low = torch.cat([low, low + width])
    kinks: list[float] = []
    for point in sorted(low.tolist()):
        if not kinks or point - kinks[-1] > 1e-9:
            kinks.append(0.0 if abs(point) < 1e-12 else round(point, 12))
    if len(kinks) > 64:
        raise ArgumentError(
            "the activation has more than 64 kinks between -24 and 24; the maps need fewer", code="too-many-kinks"
        )
    return tuple(kinks), _shortest(resolved, torch.tensor(kinks, dtype=torch.float64, device="cpu"))


def _shortest(resolved: list[tuple[Tensor, float]], kinks: Tensor) -> float:
    """Width of the narrowest panel that is not narrow for the sake of a kink beside it."""
    away = [
        width
        for low, width in resolved
        if len(low) and (not len(kinks) or ((low.unsqueeze(1) - kinks).abs().amin(1) > 4 * width).any())
    ]
    return min(away, default=1.0)


def _legendre(x: Tensor) -> Tensor:
    rows = [torch.ones_like(x), x]
    for k in range(1, len(x) - 1):
        rows.append(((2 * k + 1) * x * rows[-1] - k * rows[-2]) / (k + 1))
    return torch.stack(rows)
