"""The conditions of DKS, TAT and EOC on a network, and what they come to for each of its layers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainability.errors import ArgumentError, InfeasibleError

if TYPE_CHECKING:
    from trainability.signal.graph import SignalGraph


@dataclass(frozen=True)
class DKSTarget:
    """Q(1) = Q'(1) = 1 and C(0) = 0 in each layer, and the largest C'(1) of a subnetwork is ``zeta``.

    Args:
        zeta: the largest C'(1) of a subnetwork, above 1

    Reference: Martens et al. (2021), section 6.
    """

    zeta: float = 1.5

    def __post_init__(self) -> None:
        if not (_is_number(self.zeta) and math.isfinite(self.zeta) and self.zeta > 1):
            raise ArgumentError(f"DKS needs zeta above 1, such as 1.5 (it is {self.zeta!r})", code="zeta")

    def slope(self, graph: "SignalGraph") -> float:
        """C'(1) of each layer.

        >>> from trainability.signal import chain
        >>> DKSTarget(1.5).slope(chain(50)) == 1.5 ** (1 / 50)
        True
        """
        _needs_layers(graph)
        if len(graph.nonlinear) == graph.depth and not any(n.kind in ("sum", "concat") for n in graph.nodes):
            return float(self.zeta ** (1 / graph.depth))
        return rising_root(lambda psi: graph.maximum(lambda y: psi * y, 1.0) - self.zeta, 1.0, self.zeta)


@dataclass(frozen=True)
class TATTarget:
    """The conditions of TAT.

    Of a smooth activation: Q(1) = Q'(1) = C'(1) = 1 in each layer, and the largest C''(1) of a subnetwork is ``tau``.
    Of a ReLU or leaky ReLU: Q(1) = C'(1) = 1, and the largest C(0) of a subnetwork is ``eta``.

    Args:
        eta: of ReLUs: the largest C(0) of a subnetwork, between 0 and 1
        tau: of smooth activations: the largest C''(1) of a subnetwork, above 0

    Reference: Zhang, Botev and Martens (2022), section 4.
    """

    eta: float = 0.9
    tau: float = 0.3

    def __post_init__(self) -> None:
        if not (_is_number(self.eta) and 0 < self.eta < 1):
            raise ArgumentError(f"TAT needs eta between 0 and 1, such as 0.9 (it is {self.eta!r})", code="eta")
        if not (_is_number(self.tau) and math.isfinite(self.tau) and self.tau > 0):
            raise ArgumentError(f"TAT needs tau above 0, such as 0.3 (it is {self.tau!r})", code="tau")

    def curvature(self, graph: "SignalGraph") -> float:
        """C''(1) of each layer of a smooth activation."""
        _needs_layers(graph)
        return rising_root(lambda kappa: graph.maximum(lambda y: kappa + y, 0.0) - self.tau, 0.0, self.tau)

    def negative_slope(self, graph: "SignalGraph") -> float:
        """The negative slope of each leaky ReLU.

        >>> from trainability.signal import chain
        >>> round(TATTarget(eta=0.9).negative_slope(chain(50)), 4)
        0.4305
        """
        from trainability.signal.maps import leaky_c_map

        _needs_layers(graph)

        def excess(slope: float) -> float:
            return self.eta - graph.maximum(lambda c: leaky_c_map(slope, c), 0.0)

        if (room := excess(0.0)) > 0:
            raise InfeasibleError(
                f"no leaky ReLU reaches eta = {self.eta} in this network: with a negative slope of 0 the largest C(0) "
                f"is {self.eta - room:.6f}, so the nearest value that can be met is eta = {floor(self.eta - room)}",
                code="eta-out-of-reach",
            )
        return rising_root(excess, 0.0, 1.0)


@dataclass(frozen=True)
class EOCTarget:
    """The edge of chaos: Gaussian weights and biases under which q = 1 stays and C'(1) = 1.

    σ_w² = 1 / E φ'², σ_b² = 1 − E φ² / E φ'² (variances of a weight times its fan-in, and of a bias).

    Reference: Poole et al. (2016), eq. 7; Schoenholz et al. (2017).
    """


Target = DKSTarget | TATTarget | EOCTarget


def rising_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of an increasing function between two points; that point beyond which it lies, if it does.

    The false position in its Illinois variant, with a bisection wherever that has not halved the interval in three
    steps: where the function is huge at one end, as the slope of a deep network is, the false position alone creeps.

    >>> round(rising_root(lambda x: x**3 - 2, 0.0, 2.0), 12) == round(2 ** (1 / 3), 12)
    True
    >>> round(rising_root(lambda x: x**500 - 1.5, 1.0, 2.0) ** 500, 9)
    1.5
    """
    below, above = function(low), function(high)
    if below >= 0:
        return low
    if above <= 0:
        return high
    side, steps, width = 0, 0, high - low
    while high - low > 4e-16 * max(1.0, abs(high)):
        middle = (low + high) / 2
        if steps < 3 and math.isfinite(above):
            guess = (low * above - high * below) / (above - below)
            middle = guess if low < guess < high else middle
        value = function(middle)
        if value == 0 or not low < middle < high:
            return middle
        if value < 0:
            low, below = middle, value
            above = above / 2 if side < 0 else above
            side = -1
        else:
            high, above = middle, value
            below = below / 2 if side > 0 else below
            side = 1
        steps += 1
        if high - low <= width / 2:
            steps, width = 0, high - low
    return (low + high) / 2


def floor(value: float) -> float:
    """The value, rounded down to four digits, so that it can be met."""
    return math.floor(value * 1e4) / 1e4


def _is_number(value: object) -> bool:
    """True for a number within what float64 holds; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _needs_layers(graph: "SignalGraph") -> None:
    if not graph.nonlinear:
        raise ArgumentError("the network has no nonlinear layer to shape", code="no-activation")
