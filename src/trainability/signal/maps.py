"""Q and C maps of an activation: how one nonlinear layer changes the size of a signal and the angle between two.

For inputs u, v that are normal with mean square q and cosine c, a nonlinear layer with activation φ gives outputs of
mean square Q(q) = E φ(u)² and cosine C(c) = E[φ(u) φ(v)] / Q(q).

Reference: Poole et al. (2016), eq. 3 and 5; Martens et al. (2021), section 3.
"""

import math
from typing import Any

import torch
from torch import Tensor

from trainability.errors import ArgumentError, check_number
from trainability.signal.activation import Activation, as_activation
from trainability.signal.gaussian import edges, normal_rule

_NARROW = 1 / 8
_ROWS = 4096


def mean(phi: Any, q: float = 1.0) -> float:
    """E φ(√q X), X standard normal.

    >>> round(mean("relu"), 6)
    0.398942
    """
    act = _checked(phi, q)
    if act.leaky:
        slope, gain = act.leaky
        return gain * (1 - slope) * math.sqrt(q / (2 * math.pi))
    x, w = _rule(act, q)
    return float((w * act.derivatives(math.sqrt(q) * x, 0)[0]).sum())


def q_map(phi: Any, q: float = 1.0) -> float:
    """Q(q) = E φ(√q X)².

    >>> q_map("relu", 3.0)
    1.5
    """
    act = _checked(phi, q)
    if act.leaky:
        slope, gain = act.leaky
        return gain**2 * (1 + slope**2) / 2 * q
    x, w = _rule(act, q)
    return float((w * act.derivatives(math.sqrt(q) * x, 0)[0] ** 2).sum())


def q_slope(phi: Any, q: float = 1.0) -> float:
    """Q'(q) = E[φ(√q X) φ'(√q X) X] / √q.

    >>> q_slope("leaky_relu") == q_map("leaky_relu")
    True
    """
    act = _checked(phi, q)
    if act.leaky:
        return q_map(act, 1.0)
    x, w = _rule(act, q)
    value, slope = act.derivatives(math.sqrt(q) * x, 1)
    return float((w * value * slope * x).sum()) / math.sqrt(q)


def c_map(phi: Any, c: float, q: float = 1.0) -> float:
    """C(c) = E[φ(u) φ(v)] / Q(q), for normal u and v of mean square q and cosine c.

    >>> round(c_map("relu", 0.0) * math.pi, 9)
    1.0
    """
    act = _checked(phi, q, c)
    if act.leaky:
        return leaky_c_map(act.leaky[0], c)
    return kernel(act, c, q) / q_map(act, q)


def c_slope(phi: Any, c: float = 1.0, q: float = 1.0) -> float:
    """C'(c) = q E[φ'(u) φ'(v)] / Q(q). At c = 1 it is the χ of signal propagation where Q(q) = q.

    >>> round(c_slope("leaky_relu"), 9)
    1.0
    """
    act = _checked(phi, q, c)
    if act.jumps(0):
        raise ArgumentError(f"{act.name} jumps, so its C map has no finite slope", code="jump")
    if act.leaky:
        (s, _), angle = act.leaky, math.acos(max(-1.0, min(1.0, c)))
        return 1.0 - (1 - s) ** 2 / (1 + s * s) * angle / math.pi
    return q * kernel(act, c, q, order=1) / q_map(act, q)


def c_curvature(phi: Any, c: float = 1.0, q: float = 1.0) -> float:
    """C''(c) = q² E[φ''(u) φ''(v)] / Q(q).

    Raises:
        ValueError: φ' jumps, so the curvature is infinite at c = 1.

    >>> round(c_curvature(lambda z: z + z**2 / 10), 6)  # 0.04 / 1.03
    0.038835
    """
    act = _checked(phi, q)
    if act.jumps(0) or act.jumps(1):
        raise ArgumentError(f"the derivative of {act.name} jumps, so its C map has no finite curvature", code="jump")
    return q * q * kernel(act, c, q, order=2) / q_map(act, q)


def leaky_c_map(slope: float, c: float) -> float:
    """C map of the leaky ReLU, c + (1-s)² / (π (1+s²)) · (√(1-c²) - c arccos c).

    Reference: Zhang, Botev and Martens (2022), eq. 9.
    """
    c = max(-1.0, min(1.0, c))
    weight = (1 - slope) ** 2 / (math.pi * (1 + slope * slope))
    return c + weight * (math.sqrt(1 - c * c) - c * math.acos(c))


def kernel(phi: Any, c: float, q: float = 1.0, order: int = 0) -> float:
    """E[f(u) f(v)], f the derivative of φ of that order, for normal u and v of mean square q and cosine c.

    u and v are written as √|c| Z + √(1-|c|) Y with a common Z and a Y of their own, so that the double integral is
    the mean over Z of a square: E g(Z)², g(z) = E_Y f(√q (√|c| z + √(1-|c|) Y)), and E g(Z) g(-Z) for c < 0.
    """
    if not isinstance(order, int) or order not in (0, 1, 2):
        raise ArgumentError(f"order is {order!r}; φ, φ' and φ'' are 0, 1 and 2", code="order")
    act = _checked(phi, q, c)
    scale = math.sqrt(q)
    if abs(c) == 1:
        x, w = _rule(act, q)
        values = act.derivatives(scale * x, order)[order]
        return float((w * values * (values if c > 0 else act.derivatives(-scale * x, order)[order])).sum())
    common, own = math.sqrt(abs(c)), math.sqrt(1 - abs(c))
    kinks = torch.tensor(act.kinks, dtype=torch.float64, device="cpu") / scale
    outer = torch.cat([kinks, -kinks]) / max(common, 1e-3)
    grading = 4.0 if act.kinks else None
    # The mean over Y smooths over √(1-|c|), so that nothing changes more quickly near the kinks.
    z, w = normal_rule(_panels(act, outer, scale * common, grading, min(1.0, own / 8)))

    def g(at: Tensor) -> Tensor:
        y, v = normal_rule(_panels(act, (kinks - common * at.unsqueeze(1)) / own, scale * own))
        inner = act.derivatives(scale * (common * at.unsqueeze(1) + own * y), order)[order]
        return (v * inner).sum(1)

    total = 0.0
    for at, weights in zip(z.split(_ROWS), w.split(_ROWS), strict=True):  # a few at a time, for memory's sake
        ahead = g(at)
        total += float((weights * ahead * (ahead if c >= 0 else g(-at))).sum())
    return total


def _rule(act: Activation, q: float) -> tuple[Tensor, Tensor]:
    scale = math.sqrt(q)
    return normal_rule(_panels(act, torch.tensor(act.kinks, dtype=torch.float64, device="cpu") / scale, scale))


def _panels(act: Activation, kinks: Tensor, scale: float, grading: float | None = None, finest: float = 1e-9) -> Tensor:
    """Panels that resolve φ(scale x); of a large scale, where φ changes near the origin alone, graded ones there."""
    width = min(1.0, act.resolution / max(scale, 1e-12))
    if width >= _NARROW:
        return edges(kinks, width, grading, finest)
    return edges(torch.cat([kinks, kinks.new_zeros(*kinks.shape[:-1], 1)], -1), 1.0, 2.0)


def _checked(phi: Any, q: float, c: float = 0.0) -> Activation:
    check_number("a cosine", c)
    check_number("a mean square", q)
    if not -1 <= c <= 1:
        raise ArgumentError(f"a cosine lies between -1 and 1 (it is {c})", code="cosine")
    if not q > 0:
        raise ArgumentError(f"a mean square q is positive (it is {q})", code="mean-square")
    return as_activation(phi)
