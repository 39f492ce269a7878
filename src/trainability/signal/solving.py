"""Solving the conditions of DKS, TAT and EOC for the constants of one activation in one network."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from trainability.errors import ArgumentTypeError, InfeasibleError
from trainability.signal import maps
from trainability.signal.activation import Activation, as_activation
from trainability.signal.gaussian import NODES, edges, normal_rule
from trainability.signal.graph import SignalGraph
from trainability.signal.targets import DKSTarget, EOCTarget, Target, TATTarget, floor

# Residuals (P, 2) of two conditions at points (P, 3): log input scale, input shift, branch of the output shift; with
# panels of a width and a number of nodes.
_Conditions: TypeAlias = Callable[[Tensor, float, int], Tensor]


@dataclass(frozen=True)
class Solution:
    """Constants under which the conditions hold.

    Attributes:
        activation: the activation that was shaped.
        target: what was asked.
        constants: of output_scale · (φ(input_scale · z + input_shift) + output_shift); of a leaky ReLU with
            ``negative_slope`` in place of the input's. For EOC ``weight_variance`` and ``bias_variance``.
        residuals: how far each condition is from being met.
    """

    activation: Activation
    target: Target
    constants: dict[str, float]
    residuals: dict[str, float]

    @property
    def shaped(self) -> Activation:
        """The activation with its constants."""
        return self.activation if isinstance(self.target, EOCTarget) else self.activation.shaped(self.constants)


def solve(activation: Any, target: Target, graph: SignalGraph) -> Solution:
    """Find the constants of an activation so that a network meets its target.

    ReLU and leaky ReLU become the leaky ReLU of the slope that meets it, in closed form. For others two equations in
    the input's scale and shift are solved by Newton's method from many starts at once; of several solutions it is
    the one of smallest input shift, whose constants are the mildest.

    Args:
        activation: a name, an elementwise function, a module, or an `Activation`.
        target: such as ``DKS(zeta=1.5)``, ``TAT(eta=0.9, tau=0.3)`` or ``EOC()``.
        graph: ``chain(depth)``, or what ``read(model, inputs)`` returns.

    Raises:
        InfeasibleError: no constants meet the target; the message has the nearest value that can be met.
        UnsupportedModelError: a sum in the graph breaks the theory.

    Reference: Martens et al. (2021), section 6; Zhang, Botev and Martens (2022), section 4.

    >>> from trainability.signal import chain
    >>> solution = solve("tanh", DKSTarget(zeta=1.5), chain(50))
    >>> {name: round(value, 4) for name, value in solution.constants.items()}
    {'input_scale': 0.1284, 'input_shift': 0.5708, 'output_shift': -0.5098, 'output_scale': 10.6044}
    >>> max(abs(residual) for residual in solution.residuals.values()) < 1e-9
    True
    """
    phi = as_activation(activation)
    if not isinstance(target, DKSTarget | TATTarget | EOCTarget):
        raise ArgumentTypeError(f"the target is DKS(...), TAT(...) or EOC(), not {target!r}", code="target")
    if not isinstance(graph, SignalGraph):
        raise ArgumentTypeError(
            f"the network is a graph, such as chain(50) or read(model, inputs), not {graph!r}", code="graph"
        )
    if isinstance(target, EOCTarget):
        return _edge_of_chaos(phi, target)
    graph.check_sums(zero_mean=isinstance(target, DKSTarget))
    if isinstance(target, DKSTarget):
        solution = _dks(phi, target, graph)
    else:
        solution = (_tat_leaky if phi.leaky else _tat_smooth)(phi, target, graph)
    worst = max(solution.residuals, key=lambda name: abs(solution.residuals[name]))
    if not abs(solution.residuals[worst]) < 1e-8:
        raise InfeasibleError(
            f"{phi.name}: {worst} is off by {solution.residuals[worst]:.2g} at the best constants", code="not-solved"
        )
    return solution


def _edge_of_chaos(phi: Activation, target: EOCTarget) -> Solution:
    if phi.jumps(0):
        raise InfeasibleError(f"{phi.name} jumps, so E φ'² is infinite and it has no edge of chaos", code="jump")
    size = maps.q_map(phi)
    slope = maps.c_slope(phi) * size
    weight, bias = 1 / slope, 1 - size / slope
    if bias < -1e-12:
        raise InfeasibleError(
            f"{phi.name} has no edge of chaos at q = 1: E φ² = {size:.4g} exceeds E φ'² = {slope:.4g}, so the "
            "biases would need a negative variance; use DKS or TAT, which shift and scale it",
            code="no-edge-of-chaos",
        )
    bias = max(bias, 0.0)
    residuals = {"q": weight * size + bias - 1, "max C'(1)": weight * slope - 1}
    return Solution(phi, target, {"weight_variance": weight, "bias_variance": bias}, residuals)


def _dks(phi: Activation, target: DKSTarget, graph: SignalGraph) -> Solution:
    psi = target.slope(graph)
    if phi.jumps(0):
        raise InfeasibleError(f"{phi.name} jumps, so its C map has no finite slope; DKS cannot shape it", code="jump")
    if phi.leaky:
        constants = _dks_leaky(psi, target, graph)
    else:
        found = _dks_root(phi, psi)
        if found is None:
            reached = _nearest(lambda zeta: _dks_root(phi, DKSTarget(zeta).slope(graph)) is not None, 1.0, target.zeta)
            raise InfeasibleError(_out_of_reach(phi, f"zeta = {target.zeta}", reached), code="zeta-out-of-reach")
        scale, shift, _ = found
        _, w, (value,) = _values(phi, math.log(scale), shift, 0)
        mean, size = float((w * value).sum()), float((w * value**2).sum())
        constants = {
            "input_scale": scale,
            "input_shift": shift,
            "output_shift": -mean,
            "output_scale": 1 / math.sqrt(size - mean * mean),
        }
    shaped = phi.shaped(constants)
    slope = maps.c_slope(shaped)
    residuals = {
        "Q(1)": maps.q_map(shaped) - 1,
        "Q'(1)": maps.q_slope(shaped) - 1,
        "C(0)": maps.mean(shaped) ** 2,
        "max C'(1)": graph.maximum(lambda y: slope * y, 1.0) - target.zeta,
    }
    return Solution(phi, target, constants, residuals)


def _dks_root(phi: Activation, psi: float) -> tuple[float, float, float] | None:
    return _newton(phi, _dks_conditions(phi, psi), 2 * (psi - 1))


def _dks_leaky(psi: float, target: DKSTarget, graph: SignalGraph) -> dict[str, float]:
    """With no shift of the input Q'(1) = Q(1), and C'(1) = psi says (1-s)² / (1+s²) = π (psi - 1) / psi."""
    share = math.pi * (psi - 1) / psi
    if share > 1:
        most = graph.maximum(lambda y: math.pi / (math.pi - 1) * y, 1.0)
        raise InfeasibleError(
            f"no leaky ReLU reaches zeta = {target.zeta} in this network; with a negative slope of 0 the largest "
            f"C'(1) is {most:.6f}, so the nearest value that can be met is zeta = {floor(most)}",
            code="zeta-out-of-reach",
        )
    slope = (1 - share) / (1 + math.sqrt(1 - (1 - share) ** 2))
    mean = (1 - slope) / math.sqrt(2 * math.pi)
    return {
        "negative_slope": slope,
        "input_shift": 0.0,
        "output_shift": -mean,
        "output_scale": 1 / math.sqrt((1 + slope**2) / 2 - mean**2),
    }


def _tat_leaky(phi: Activation, target: TATTarget, graph: SignalGraph) -> Solution:
    slope = target.negative_slope(graph)
    constants = {"negative_slope": slope, "output_scale": math.sqrt(2 / (1 + slope * slope))}
    shaped = phi.shaped(constants)
    residuals = {
        "Q(1)": maps.q_map(shaped) - 1,
        "C'(1)": maps.c_slope(shaped) - 1,
        "max C(0)": graph.maximum(lambda c: maps.leaky_c_map(slope, c), 0.0) - target.eta,
    }
    return Solution(phi, target, constants, residuals)


def _tat_smooth(phi: Activation, target: TATTarget, graph: SignalGraph) -> Solution:
    if phi.jumps(1):
        raise InfeasibleError(
            f"the derivative of {phi.name} jumps, so its C map has no finite curvature and TAT cannot shape it; "
            "use DKS, or a leaky ReLU",
            code="jump",
        )
    constants = _tat_root(phi, target.curvature(graph))
    if constants is None:
        reached = _nearest(lambda tau: _tat_root(phi, TATTarget(tau=tau).curvature(graph)) is not None, 0.0, target.tau)
        raise InfeasibleError(_out_of_reach(phi, f"tau = {target.tau}", reached), code="tau-out-of-reach")
    shaped = phi.shaped(constants)
    curvature = maps.c_curvature(shaped)
    residuals = {
        "Q(1)": maps.q_map(shaped) - 1,
        "Q'(1)": maps.q_slope(shaped) - 1,
        "C'(1)": maps.c_slope(shaped) - 1,
        "max C''(1)": graph.maximum(lambda y: curvature + y, 0.0) - target.tau,
    }
    return Solution(phi, target, constants, residuals)


def _tat_root(phi: Activation, kappa: float) -> dict[str, float] | None:
    found = _newton(phi, _tat_conditions(phi, kappa), kappa)
    if found is None:
        return None
    scale, shift, sign = found
    _, w, (value, slope) = _values(phi, math.log(scale), shift, 1)
    mean, square = float((w * value).sum()), float((w * value**2).sum())
    size = scale**2 * float((w * slope**2).sum())  # E (φ + output_shift)², by C'(1) = 1
    return {
        "input_scale": scale,
        "input_shift": shift,
        "output_shift": -mean + sign * math.sqrt(max(size - square + mean**2, 0.0)),
        "output_scale": 1 / math.sqrt(size),
    }


def _values(phi: Activation, log_scale: float, shift: float, order: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    point = torch.tensor([[log_scale, shift]], dtype=torch.float64, device="cpu")
    return _rows(phi, point, _width(phi, log_scale), NODES, order)


def _rows(
    phi: Activation, points: Tensor, width: float, nodes: int, order: int
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """x, weights, and φ, φ', ... at exp(log scale) x + shift, each ``(P, nodes)``."""
    scale, shift = points[:, :1].exp(), points[:, 1:2]
    kinks = (torch.tensor(phi.kinks, dtype=torch.float64, device="cpu") - shift) / scale
    x, w = normal_rule(edges(kinks, width), nodes)
    return x, w, phi.derivatives(scale * x + shift, order)


def _width(phi: Activation, log_scale: float) -> float:
    return min(1.0, phi.resolution * math.exp(-log_scale))


def _dks_conditions(phi: Activation, psi: float) -> _Conditions:
    """Q'(1) - 1 and C'(1) - psi; C(0) = 0 and Q(1) = 1 hold by the choice of output shift and scale."""

    def residuals(points: Tensor, width: float, nodes: int) -> Tensor:
        x, w, (value, slope) = _rows(phi, points, width, nodes, 1)
        scale = points[:, 0].exp()
        centered = value - (w * value).sum(1, keepdim=True)
        size = (w * centered**2).sum(1)
        first = scale * (w * x * slope * centered).sum(1) / size - 1
        second = scale**2 * (w * slope**2).sum(1) / size - psi
        return torch.stack([first, second], 1)

    return residuals


def _tat_conditions(phi: Activation, kappa: float) -> _Conditions:
    """Q'(1) - 1 and C''(1) - kappa.

    C'(1) = 1 says E (φ + d)² = a² E φ'² and so gives the output shift d, up to a sign: the root that it needs is real
    because a Gaussian's variance under φ is at most a² E φ'² (Poincaré's inequality).
    """

    def residuals(points: Tensor, width: float, nodes: int) -> Tensor:
        x, w, (value, slope, bend) = _rows(phi, points, width, nodes, 2)
        scale = points[:, 0].exp()
        power = (w * slope**2).sum(1)
        centered = value - (w * value).sum(1, keepdim=True)
        room = (scale**2 * power - (w * centered**2).sum(1)).clamp(min=0.0)
        moved = centered + (points[:, 2] * room.sqrt()).unsqueeze(1)
        first = (w * x * slope * moved).sum(1) / (scale * power) - 1
        second = scale**2 * (w * bend**2).sum(1) / power - kappa
        return torch.stack([first, second], 1)

    return residuals


def _newton(phi: Activation, conditions: _Conditions, kappa: float) -> tuple[float, float, float] | None:
    """Input scale, input shift and branch of the output shift at which both conditions hold.

    First many starts with few nodes, then the best of what they found with many. A start takes its scale from the
    second condition for small scales, where C''(1) = 2 (C'(1) - 1) = (a φ''(b) / φ'(b))². Of several solutions the
    one of smallest shift is taken, whose constants are the mildest; of mirrored ones that of positive shift.
    """
    # Closer together near the origin, where most activations bend.
    shifts = torch.linspace(-3, 3, 18, dtype=torch.float64, device="cpu").sinh() / 2.5
    _, slope, bend = phi.derivatives(shifts, 2)
    scale = (math.sqrt(kappa) * slope.abs() / bend.abs()).nan_to_num(1.0, posinf=1.0).clamp(1e-3, 1.0)
    points = torch.cat([torch.stack([scale.log(), shifts, torch.full_like(shifts, s)], 1) for s in (-1.0, 1.0)])
    sizes = torch.tensor([1.0, kappa], dtype=torch.float64, device="cpu")
    for _ in range(12):
        points, error = _step(lambda p: conditions(p, 2.0, 8) / sizes, points)
    found = {tuple(round(v, 3) for v in p) for p in points[error < 0.03].tolist()}
    for start in sorted(found, key=lambda p: (round(abs(p[1]), 2), -p[1])):
        point = torch.tensor([start], dtype=torch.float64, device="cpu")
        for _ in range(10):
            width = _width(phi, float(point[0, 0]))

            def fine(at: Tensor, width: float = width) -> Tensor:
                return conditions(at, width, NODES)

            point, error = _step(fine, point)
            if float(error) < 1e-10:  # of the point before this step, so the step's own is its square
                return math.exp(float(point[0, 0])), float(point[0, 1]), start[2]
    return None


def _step(function: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """One Newton step of bounded length for every point, and how far each was from a solution before it."""
    h = 1e-5
    moves = points.new_tensor([[0, 0, 0], [h, 0, 0], [-h, 0, 0], [0, h, 0], [0, -h, 0]])
    here, right, left, up, down = function((points + moves.unsqueeze(1)).flatten(0, 1)).unflatten(0, (5, -1))
    jacobian = torch.stack([right - left, up - down], 2) / (2 * h)
    step, _ = torch.linalg.solve_ex(jacobian, here)
    step = step.nan_to_num(0.0, 0.0, 0.0).clamp(-0.7, 0.7)
    moved = torch.stack(
        [(points[:, 0] - step[:, 0]).clamp(-12, 4), (points[:, 1] - step[:, 1]).clamp(-12, 12), points[:, 2]], 1
    )
    return moved, here.abs().amax(1).nan_to_num(math.inf)


def _nearest(feasible: Callable[[float], bool], neutral: float, asked: float) -> float | None:
    """The value nearest to the one asked for that can be met, by bisection from the neutral one."""
    low, high = neutral, asked
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return None if low == neutral else low


def _out_of_reach(phi: Activation, asked: str, nearest: float | None) -> str:
    if nearest is None:
        return f"{phi.name} cannot be shaped: it meets no value near {asked} either; use another activation"
    return f"{phi.name} does not reach {asked} in this network; the nearest value that can be met is {nearest:.4g}"
