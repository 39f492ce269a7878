"""Comparison of a shaped model with the prediction that it was shaped by: q and c of every layer, over draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from trainability.signal.execute import Moments, moments_of, run
from trainability.signal.features import covered, of_input
from trainability.signal.graph import Node, SignalGraph
from trainability.signal.operations import CHOOSING, POOLING
from trainability.signal.propagate import LAYERS, State, propagate
from trainability.signal.recording import Recording

FACTOR, ERRORS, DRAWS = 1.5, 4.0, 8
_FIRST = 2  # draws, which are enough where nothing departs
_LISTED = 1.1, 6  # departures in q that a report lists, and how many


@dataclass(frozen=True)
class Compared:
    """One layer: q and c as predicted and as measured, means over draws.

    ``error`` is the standard error of the logarithm of the measured q, NaN for one draw. ``confirmed`` is False for a
    departure that fresh draws did not show again; ``reason`` is what is likely to be behind one.
    """

    path: str
    kind: str
    q: float
    c: float
    measured_q: float
    measured_c: float
    error: float
    confirmed: bool = True
    reason: str = ""

    @property
    def factor(self) -> float:
        """The factor by which q departs, in either direction."""
        ratio = self.measured_q / self.q
        return max(ratio, 1 / ratio) if 0 < ratio < math.inf else math.inf

    @property
    def departs(self) -> bool:
        """True where q departs by more than a factor of 1.5 and 4 standard errors, in fresh draws again."""
        return self.confirmed and self.factor > FACTOR and not abs(math.log(self.factor)) <= ERRORS * self.error

    def __str__(self) -> str:
        return (
            f"{self.path or 'the model'} ({self.kind}): q {self.measured_q:.4g} where {self.q:.4g} is predicted, "
            f"c {self.measured_c:.3f} where {self.c:.3f}"
        )


@dataclass(frozen=True)
class Check:
    """The signal of a shaped model as measured, beside the prediction.

    Attributes:
        draws: over how many draws of the weights; 1 where they were kept.
        layers: every layer as far as the theory goes, in order.
        redrawn: whether weights were drawn, so that the theory has to hold.
        poolings: where places are taken together, on which the theory is silent: path, and q before and behind.
    """

    draws: int
    layers: tuple[Compared, ...]
    redrawn: bool
    poolings: tuple[tuple[str, float, float], ...] = ()

    @property
    def departure(self) -> Compared | None:
        """The first layer where q departs."""
        return next((layer for layer in self.layers if layer.departs), None) if self.redrawn else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; None for numbers that are not finite, as the error of a single draw."""
        layers = [{key: _finite(value) for key, value in asdict(layer).items()} for layer in self.layers]
        poolings = [
            {"path": path, "before": _finite(before), "after": _finite(after)} for path, before, after in self.poolings
        ]
        return {"draws": self.draws, "redrawn": self.redrawn, "layers": layers, "poolings": poolings}

    def __str__(self) -> str:
        if not self.layers:
            return "  not checked: the theory says nothing of it"
        how = f"over {self.draws} draws of the weights" if self.redrawn else "with the weights as they are"
        lines = [f"  checked {how}, on normal inputs of mean square 1; last: {self.layers[-1]}"]
        off = sorted((v for v in self.layers if v.factor > _LISTED[0]), key=lambda v: -v.factor)[: _LISTED[1]]
        lines += [f"  off by a factor of {layer.factor:.3g} in q: {layer}" for layer in off]
        lines += [f"  {p or 'the model'}: takes places together, q {a:.3g} -> {b:.3g}" for p, a, b in self.poolings]
        return "\n".join(lines)


def check(
    graph: SignalGraph, recording: Recording, draws: Sequence[Callable[[], None]], redrawn: bool, borders: bool
) -> Check:
    """Run a recorded model on normal inputs of mean square 1 and measure q and c of every layer.

    Two draws of the weights are made, and six more where q of a layer departs in those; what departs then has to do so
    in eight fresh ones, too. Where places are taken together (pooling, means over places), the prediction goes on from
    what was measured, as the theory has no rule.

    Args:
        graph: what was read, with the scales that the weights are meant to have.
        recording: what it was read off.
        draws: draw the weights anew; all are called for each draw.
        redrawn: whether there are any, and the theory holds of the whole model.
        borders: whether all taps of a kernel have weights, so that the zeros around a map take a part of the signal.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = {node.at for node in graph.nodes if isinstance(node.at, fx.Node)}
    inputs: dict[str, Tensor] = {}

    def measured(count: int) -> list[dict[fx.Node, Moments]]:
        found = []
        for _ in range(count):
            with torch.no_grad():
                for draw in draws:
                    draw()
            inputs.update({name: _normal(tensor, generator) for name, tensor in recording.inputs.items()})
            found.append(run(recording, wanted, inputs))
        return found

    seen = measured(_FIRST if redrawn else 1)
    found = _compared(graph, inputs, seen, redrawn, borders)
    if not redrawn or all(layer.factor <= FACTOR for layer in found.layers):
        return found
    seen += measured(DRAWS - _FIRST)
    found = _compared(graph, inputs, seen, redrawn, borders)
    if found.departure is None:
        return found
    # Of many layers of a narrow network one may depart by chance: what departs has to do so again in fresh draws.
    again = _compared(graph, inputs, measured(DRAWS), redrawn, borders)
    both = {k for k, layer in enumerate(found.layers) if layer.departs and again.layers[k].departs}
    layers = [replace(v, confirmed=k in both) if v.departs else v for k, v in enumerate(found.layers)]
    return replace(found, layers=tuple(layers))


def _normal(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Inputs of mean square 1 at every place, and of cosine 1/2; what is not floating-point stays."""
    if not tensor.is_floating_point() or tensor.dim() == 0:
        return tensor
    own = torch.randn(tensor.shape, generator=generator)
    common = torch.randn(tensor.shape[1:], generator=generator)
    values = own + common
    over = sorted(of_input(tensor.shape)) or [0]
    return (values / values.square().mean(over, keepdim=True).sqrt()).to(tensor)


def _compared(
    graph: SignalGraph, inputs: dict[str, Tensor], seen: list[dict[fx.Node, Moments]], redrawn: bool, borders: bool
) -> Check:
    means = {at: (_mean([s[at][0] for s in seen])[0], *_averages([s[at][1:] for s in seen])) for at in seen[0]}
    poolings: list[tuple[str, float, float]] = []

    def adjust(k: int, state: State) -> State:
        """Go on with what was measured where places are taken together, and where borders explain what is missing."""
        node = graph.nodes[k]
        if node.at not in means:
            return state
        q, c, m = means[node.at]
        if node.kind == "pass" and node.detail in POOLING:
            poolings.append((node.path, state.q, q))
            return State(q, q * c, m)
        before = means.get(graph.nodes[node.inputs[0]].at) if borders and node.kind == "affine" else None
        if before is None or (share := covered(node.at)) == 1:
            return state
        passed = q / (node.weights[0] * before[0] + node.weights[1])  # of what would come through without borders
        left = min(max(passed, share), 1.0)
        return State(state.q * left, state.k * left, 0.0)

    starts = {name: moments_of(v)[:2] for name, v in inputs.items() if v.is_floating_point() and v.dim() and len(v) > 1}
    found = propagate(graph, {**starts, "": (1.0, 0.5)}, adjust)
    layers = []
    for k, (node, state) in enumerate(zip(graph.nodes, found.states, strict=False)):
        if node.kind not in LAYERS or node.at not in means or not 0 < state.q < math.inf:
            continue
        ratio, error = _mean([s[node.at][0] / state.q for s in seen])
        layer = Compared(node.path, node.kind, state.q, state.c, state.q * ratio, means[node.at][1], error)
        layers.append(replace(layer, reason=_reason(graph, k)) if layer.departs else layer)
    return Check(len(seen), tuple(layers), redrawn, tuple(poolings))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(ratios: list[float]) -> tuple[float, float]:
    """Mean of numbers that are log-normal, and the standard error of its logarithm.

    q of a deep network is a product of many, so its logarithm is what is nearly normal; and in a narrow one the mean
    of a few draws is far below the mean of all, which rare large ones make up: exp(mean + variance / 2) of the
    logarithms is not.
    """
    logs = torch.tensor(ratios, dtype=torch.float64).clamp(min=1e-300).log()
    if len(logs) == 1:
        return float(logs.exp()), math.nan
    spread, n = float(logs.var()), len(logs)
    return math.exp(min(float(logs.mean()) + spread / 2, 600.0)), math.sqrt(spread / n + spread**2 / (2 * (n - 1)))


def _averages(rows: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(row[0] for row in rows) / len(rows), sum(row[1] for row in rows) / len(rows)


def _reason(graph: SignalGraph, k: int) -> str:
    """The likely cause of a departure at a node."""
    node = graph.nodes[k]
    before = _before(graph, k)
    if node.derived:
        return "its forward changes the weight that it multiplies by (standardizes, scales or masks it)"
    if chosen := next((n for n in before if n.detail in CHOOSING), None):
        return (
            f"{chosen.path or 'the model'} takes the largest or smallest of many values ({chosen.detail}), not a mean"
        )
    if fixed := next((n for n in before if n.detail == "fixed matrix"), None):
        return f"{fixed.path or 'the model'} multiplies by a tensor that is no parameter"
    if node.kind == "nonlinear" and not graph.gaussian[node.inputs[0]]:
        return "its activation takes values that are not normal, as another comes before with no weight layer between"
    if node.kind == "affine":
        return "its weights are not what multiplies the signal, or its layers are too narrow for the theory"
    return "its forward does something else than was read, or its layers are too narrow for the theory"


def _before(graph: SignalGraph, k: int) -> list[Node]:
    """The nodes between one and the weight layers or activations before it."""
    found: list[Node] = []
    open_ = [*graph.nodes[k].inputs]
    while open_:
        node = graph.nodes[open_.pop()]
        if node.kind in ("pass", "scale", "shift"):
            found.append(node)
            open_ += node.inputs
    return found


def with_scales(graph: SignalGraph, scales: dict[str, tuple[float, float]]) -> SignalGraph:
    """The graph with the scales that weights are meant to have, by the name of the parameter."""
    return SignalGraph(tuple(replace(node, weights=scales.get(node.weight, node.weights)) for node in graph.nodes))
