"""q, c and the mean of a signal, carried through a graph from node to node."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainability.introspect.norms import BATCH_NORM_OPERATIONS
from trainability.signal import maps
from trainability.signal.graph import Node, SignalGraph

_DRAWS = 2**14
LAYERS = ("affine", "nonlinear", "sum", "normalize", "concat")  # kinds of nodes that are shown as layers
_CONSTANT = ("shift", "normalize")  # what adds a bias that is the same for both inputs


@dataclass(frozen=True)
class State:
    """Mean square q, mean product k of two inputs, and mean m of a value, over the random weights."""

    q: float
    k: float
    m: float

    @property
    def c(self) -> float:
        """The cosine between two inputs."""
        return max(-1.0, min(1.0, self.k / self.q))


@dataclass(frozen=True)
class Propagated:
    """A state for each node, as far as the theory goes, and why it ends where it does."""

    states: list[State]
    stopped: str | None


def propagate(
    graph: SignalGraph, starts: Mapping[str, tuple[float, float]], adjust: Callable[[int, State], State] | None = None
) -> Propagated:
    """q, k and m through a graph whose affine nodes know the scale of their weights.

    Where the values are normal over the random weights, the maps of the activation say what comes out. Where they are
    not (relu(x + f(x)), whose x is never negative; sums whose summands depend on one another; concatenations of
    features of different size), the joint distribution of a feature for two inputs is carried along as 2¹⁴ draws of
    it, which come from a Sobol sequence and so are the same every time.

    Args:
        graph: as `read` returns it.
        starts: q and c of each input, by its name; ``""`` for those that are not named.
        adjust: what to go on with at a node instead of the theory's state, as behind a pooling, of which it knows
            nothing.
    """
    draws = _Draws(graph)
    states: list[State] = []
    known: dict[tuple[int, float, float], State] = {}
    for k, node in enumerate(graph.nodes):
        before = [states[i] for i in node.inputs]
        if node.detail in BATCH_NORM_OPERATIONS:
            what = f"The prediction ends at {node.path}: {node.detail} makes an output depend on the whole batch."
            return Propagated(states, what)
        if node.kind == "input":
            q, c = starts.get(node.detail) or starts[""]
            state = State(q, q * c, 0.0)
        elif draws.needed_at(k):
            state = draws.state(k, states)
        else:
            state = _through(node, before, known)
        states.append(state if adjust is None else adjust(k, state))
        state = states[-1]
        if not (math.isfinite(state.q) and 0 < state.q < 1e300):
            fate = "vanishes" if state.q < 1 else "is beyond all bounds"
            return Propagated(states, f"The signal {fate} at {node.path}.")
    return Propagated(states, None)


def _through(node: Node, before: list[State], known: dict[tuple[int, float, float], State]) -> State:
    first = before[0]
    if node.kind == "affine":
        gain, shift = node.weights or (1.0, 0.0)
        return State(gain * first.q + shift, gain * first.k + shift, 0.0)
    if node.kind == "nonlinear":
        place = (id(node.activation), first.q, first.c)
        if place not in known:
            size = maps.q_map(node.activation, first.q)
            covariance = size if first.c == 1 else maps.c_map(node.activation, first.c, first.q) * size
            known[place] = State(size, covariance, maps.mean(node.activation, first.q))
        return known[place]
    if node.kind == "sum":
        w = node.weights
        cross = sum(w[i] * w[j] * before[i].m * before[j].m for i in range(len(w)) for j in range(len(w)) if i != j)
        square = [v * v for v in w]
        return State(
            sum(v * s.q for v, s in zip(square, before, strict=True)) + cross,
            sum(v * s.k for v, s in zip(square, before, strict=True)) + cross,
            sum(v * s.m for v, s in zip(w, before, strict=True)),
        )
    if node.kind == "concat":
        parts = list(zip(node.weights, before, strict=True))
        return State(*(sum(share * getattr(s, what) for share, s in parts) for what in ("q", "k", "m")))
    if node.kind == "scale":
        factor = node.weights[0]
        return State(factor**2 * first.q, factor**2 * first.k, factor * first.m)
    if node.kind == "shift":
        power, offset = node.weights
        both = power + 2 * offset * first.m
        return State(first.q + both, first.k + both, first.m + offset)
    if node.kind == "normalize":
        gain, shift = _gain_and_shift(node)
        m = 0.0 if node.detail == "rms_norm" else first.m
        spread = max(first.q - m * m, 1e-300)
        return State(gain + shift, gain * (first.k - m * m) / spread + shift, 0.0)
    return first


def _gain_and_shift(node: Node) -> tuple[float, float]:
    return (node.weights[0], node.weights[1] if len(node.weights) > 1 else 0.0) if node.weights else (1.0, 0.0)


class _Draws:
    """Values of one feature for two inputs, drawn over the random weights, at the nodes that need them."""

    def __init__(self, graph: SignalGraph) -> None:
        self.graph = graph
        self.values: dict[int, Tensor] = {}

    @cached_property
    def _uneven(self) -> list[bool]:
        """For each node, whether its features differ in distribution, as after a concatenation."""
        found: list[bool] = []
        for node in self.graph.nodes:
            below = any(found[i] for i in node.inputs)
            found.append(node.kind == "concat" or (below and node.kind not in ("affine", "input")))
        return found

    def needed_at(self, k: int) -> bool:
        """True for a node at which the maps of the theory do not hold."""
        node = self.graph.nodes[k]
        if node.kind == "nonlinear":
            return not self.graph.gaussian[node.inputs[0]] or self._uneven[node.inputs[0]]
        return node.kind == "sum" and self.graph.dependent(node)

    @cached_property
    def _normals(self) -> dict[int, Tensor]:
        """Two standard normal numbers ``(2¹⁴, 2)`` for each node that draws any."""
        wanted: set[int] = {k for k in range(len(self.graph.nodes)) if self.needed_at(k)}
        for k in range(len(self.graph.nodes) - 1, -1, -1):
            if k in wanted and self.graph.nodes[k].kind not in ("affine", "input"):
                wanted.update(self.graph.nodes[k].inputs)
        drawing = [k for k in sorted(wanted) if self.graph.nodes[k].kind in ("affine", "input", *_CONSTANT)]
        engine = torch.quasirandom.SobolEngine(2 * len(drawing), scramble=True, seed=0)
        uniform = engine.draw(_DRAWS, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        normal = torch.special.ndtri(uniform).unflatten(1, (-1, 2))
        return {k: normal[:, i] for i, k in enumerate(drawing)}

    def state(self, k: int, states: list[State]) -> State:
        """The state of a node by the draws of its values."""
        u, v = self.at(k, states).unbind(1)
        q = float((u.square().mean() + v.square().mean()) / 2)
        return State(q, float((u * v).mean()), float((u.mean() + v.mean()) / 2))

    def at(self, k: int, states: list[State]) -> Tensor:
        """Draws ``(2¹⁴, 2)`` of the value of a node for two inputs."""
        open_ = [k]  # a stack and no recursion, since networks are deep
        while open_:
            node = self.graph.nodes[open_[-1]]
            missing = [] if node.kind in ("affine", "input") else [i for i in node.inputs if i not in self.values]
            if missing:
                open_ += missing
            elif (last := open_.pop()) not in self.values:
                self.values[last] = self._drawn(last, states)
        return self.values[k]

    def _drawn(self, k: int, states: list[State]) -> Tensor:
        node = self.graph.nodes[k]
        if node.kind in ("affine", "input"):
            state, z = states[k], self._normals[k]
            other = state.c * z[:, 0] + math.sqrt(1 - state.c**2) * z[:, 1]
            return math.sqrt(state.q) * torch.stack([z[:, 0], other], 1)
        before = [self.values[i] for i in node.inputs]
        if node.kind == "nonlinear":
            assert node.activation is not None
            return node.activation.derivatives(before[0], 0)[0]
        if node.kind == "sum":
            return torch.stack([w * value for w, value in zip(node.weights, before, strict=True)]).sum(0)
        if node.kind == "concat":
            # As many draws of each as it has features, in their order, so that another such value meets the same ones.
            ends = (torch.tensor([0.0, *node.weights], dtype=torch.float64).cumsum(0) * _DRAWS).round().long().tolist()
            return torch.cat([v[i:j] for v, i, j in zip(before, ends[:-1], ends[1:], strict=True)])
        if node.kind == "scale":
            return node.weights[0] * before[0]
        if node.kind == "shift":
            power, offset = node.weights
            return before[0] + offset + math.sqrt(max(power - offset**2, 0.0)) * self._normals[k][:, :1]
        if node.kind == "normalize":
            gain, shift = _gain_and_shift(node)
            state = states[node.inputs[0]]
            m = 0.0 if node.detail == "rms_norm" else state.m
            bare = (before[0] - m) / math.sqrt(max(state.q - m * m, 1e-300))
            return math.sqrt(gain) * bare + math.sqrt(shift) * self._normals[k][:, :1]
        return self._pooled(before[0], states[node.inputs[0]], states[k] if k < len(states) else None)

    @staticmethod
    def _pooled(values: Tensor, before: State, after: State | None) -> Tensor:
        """Draws moved and stretched to what was measured behind a pooling."""
        if after is None or after == before:
            return values
        stretch = math.sqrt(max(after.q - after.m**2, 0.0) / max(before.q - before.m**2, 1e-300))
        return after.m + stretch * (values - before.m)
