"""What the weights of a model say about the size of its signal and the angle between two, before it is run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError
from trainability.kernels import maps
from trainability.kernels.graph import Graph, Node
from trainability.kernels.operations import BATCH_NORMALISATION
from trainability.kernels.read import read
from trainability.observe import call, observing, unwrap
from trainability.taps import Place, Taps, activation_of

_COLLAPSED = 0.999  # two inputs whose outputs have this cosine differ by 4 % of their size
_DEAD, _EXPLODED = 1e-4, 1e4  # of the mean square that comes in


@dataclass(frozen=True)
class KernelValue:
    """Mean square q and cosine c between two inputs at one place; ``calls`` counts those of one module before it."""

    path: str
    kind: str
    q: float
    c: float
    detail: str = ""


@dataclass(frozen=True)
class Prediction:
    """q and c through a network. Iterates over its layers; `print` shows them.

    Attributes:
        layers: one value per weight layer, nonlinear layer, sum and normalisation, in order.
        start: q and c of the inputs.
        stopped: why the prediction ends before the output, if it does.
    """

    start: KernelValue
    layers: tuple[KernelValue, ...]
    stopped: str | None = None
    graph: Graph | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Any:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def collapses_at(self) -> str | None:
        """The layer from which on the cosine stays above 0.999: all inputs look alike there."""
        path = None
        for layer in self.layers:
            path = (path or layer.path) if layer.c > _COLLAPSED else None
        return path

    @property
    def dies_at(self) -> str | None:
        """The layer from which on q stays below 1e-4 of that of the inputs."""
        return self._beyond(lambda q: q < _DEAD * self.start.q)

    @property
    def explodes_at(self) -> str | None:
        """The layer from which on q stays above 1e4 times that of the inputs, or is not finite."""
        return self._beyond(lambda q: not q < _EXPLODED * self.start.q)

    def _beyond(self, limit: Any) -> str | None:
        path = None
        for layer in self.layers:
            path = (path or layer.path) if limit(layer.q) else None
        return path

    def __str__(self) -> str:
        lines = [f"{'layer':30s} {'kind':22s} {'q':>10s} {'c':>8s}"]
        for value in (self.start, *self.layers):
            kind = f"{value.kind} {value.detail}".strip()
            lines.append(f"{value.path or '(the model)':30s} {kind:22s} {value.q:10.4g} {value.c:8.4f}")
        return "\n".join([*lines, *([self.stopped] if self.stopped else [])])


@dataclass(frozen=True)
class _State:
    q: float  # mean square
    k: float  # mean product for two inputs
    m: float  # mean over the weights
    uneven: bool = False  # whether features have different q, as after a concatenation


def predict(model: nn.Module, inputs: Any) -> Prediction:
    """Predict q and c through every layer of a model at the scale of its present weights.

    A weight layer of mean square σ² of its weights, fan-in n and biases of mean square β² makes q into n σ² q + β². A
    nonlinear layer applies its Q and C map; a sum of weights w mixes Σ w² q, with 2 Σ w w' m m' for summands that have
    means m. Inputs enter with their mean square and the mean cosine of two of the batch. Exact for wide layers of
    independent random weights: at initialisation, not after training. Dropout is that of evaluation (in training it
    multiplies q by 1 / (1 - p)), and pooling is taken to leave q and c alone, which averaging over places does not.

    Args:
        model: any module that `read` reads.
        inputs: a batch of two or more, as in `trainability.measure`.

    Raises:
        UnsupportedModelError: the model cannot be read.

    Reference: Poole et al. (2016), eq. 3 to 5; Martens et al. (2021), section 3.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU())
    >>> for layer in predict(model, torch.randn(100, 200)):
    ...     print(layer.path, f"{layer.q:.2f}")
    0 0.34
    1 0.17
    2 0.06
    3 0.03
    """
    model = unwrap(model)
    graph = read(model, inputs)
    return propagate(graph, *_of_inputs(inputs))


def propagate(graph: Graph, q: float, c: float) -> Prediction:
    """q and c through a graph whose affine nodes know the scale of their weights."""
    start = KernelValue("", "input", q, c)
    states: list[_State] = []
    values: list[KernelValue] = []
    known: dict[tuple[int, float, float], _State] = {}
    for node in graph.nodes:
        before = [states[i] for i in node.inputs]
        if node.detail in BATCH_NORMALISATION:
            stopped = f"The prediction ends at {node.path}: {node.detail} makes an output depend on the whole batch."
            return Prediction(start, tuple(values), stopped, graph)
        if node.kind == "nonlinear" and before[0].uneven:
            stopped = f"The prediction ends at {node.path}: it follows a concatenation of features of different size."
            return Prediction(start, tuple(values), stopped, graph)
        if node.kind == "sum" and graph.dependent(node):
            stopped = f"The prediction ends at {node.path}: it adds values that depend on one another."
            return Prediction(start, tuple(values), stopped, graph)
        state = _State(q, q * c, 0.0) if node.kind == "input" else _through(node, before, known)
        states.append(state)
        if not (math.isfinite(state.q) and 0 < state.q < 1e300):
            fate = "vanishes" if state.q < 1 else "is beyond all bounds"
            return Prediction(start, tuple(values), f"The signal {fate} at {node.path}.", graph)
        if node.kind in ("affine", "nonlinear", "sum", "normalise", "concat"):
            cosine = max(-1.0, min(1.0, state.k / state.q))
            values.append(KernelValue(node.path, node.kind, state.q, cosine, _shown(node)))
    return Prediction(start, tuple(values), None, graph)


def _shown(node: Node) -> str:
    return node.activation.name if node.activation is not None else node.detail if node.kind == "normalise" else ""


def _through(node: Node, before: list[_State], known: dict[tuple[int, float, float], _State]) -> _State:
    first = before[0]
    if node.kind == "affine":
        gain, shift = node.weights or (1.0, 0.0)
        return _State(gain * first.q + shift, gain * first.k + shift, 0.0)
    if node.kind == "nonlinear":
        cosine = max(-1.0, min(1.0, first.k / first.q))
        place = (id(node.activation), first.q, cosine)
        if place not in known:
            size = maps.q_map(node.activation, first.q)
            covariance = size if cosine == 1 else maps.c_map(node.activation, cosine, first.q) * size
            known[place] = _State(size, covariance, maps.mean(node.activation, first.q))
        return known[place]
    if node.kind == "sum":
        w = node.weights
        cross = sum(w[i] * w[j] * before[i].m * before[j].m for i in range(len(w)) for j in range(len(w)) if i != j)
        square = [v * v for v in w]
        return _State(
            sum(v * s.q for v, s in zip(square, before, strict=True)) + cross,
            sum(v * s.k for v, s in zip(square, before, strict=True)) + cross,
            sum(v * s.m for v, s in zip(w, before, strict=True)),
        )
    if node.kind == "concat":
        parts = list(zip(node.weights, before, strict=True))
        size, covariance, centre = (sum(share * getattr(s, what) for share, s in parts) for what in ("q", "k", "m"))
        uneven = any(abs(s.q - size) > 0.01 * size for _, s in parts)
        return _State(size, covariance, centre, uneven)
    if node.kind == "scale":
        factor = node.weights[0]
        return _State(factor**2 * first.q, factor**2 * first.k, factor * first.m)
    if node.kind == "shift":
        power, offset = node.weights
        both = power + 2 * offset * first.m
        return _State(first.q + both, first.k + both, first.m + offset)
    if node.kind == "normalise":
        gain, shift = [*node.weights, 1.0, 0.0][:2] if len(node.weights) != 1 else (node.weights[0], 0.0)
        m = 0.0 if node.detail == "rms_norm" else first.m
        spread = max(first.q - m * m, 1e-300)
        return _State(gain + shift, gain * (first.k - m * m) / spread + shift, 0.0)
    return first


def _of_inputs(inputs: Any) -> tuple[float, float]:
    tensors = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else [inputs]
    )
    signals = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    if not signals or len(signals[0]) < 2:
        raise ArgumentError("a prediction needs a batch of two inputs or more, of floating-point numbers")
    return kernel_of(signals[0])


def kernel_of(values: Tensor) -> tuple[float, float]:
    """Mean square, and mean cosine of two different samples, of values ``(B, ...)``."""
    rows = values.detach()[:256].flatten(1).double()
    products = rows @ rows.T / rows.shape[1]
    sizes = products.diagonal()
    if not bool((sizes > 0).any()):
        return 0.0, 1.0  # nothing is left, and so all inputs look alike
    cosines = products / (sizes.sqrt().outer(sizes.sqrt())).clamp(min=1e-300)
    count = len(rows)
    return float(sizes.mean()), float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def measured(
    model: nn.Module, inputs: Any, paths: Sequence[str | Place] | None = None
) -> list[tuple[str, float, float]]:
    """q and c at the outputs of modules, as one run of the model on a batch shows them, in the order of execution.

    ``paths`` are those of the modules, or other places; by default all modules that have none inside.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    >>> [path for path, q, c in measured(model, torch.randn(8, 4), ["1"])]
    ['1']
    """
    model = unwrap(model)
    if paths is None:
        paths = [path for path, module in model.named_modules() if path and not list(module.children())]
    reader = _KernelReader()
    with observing(model), torch.no_grad(), Taps(model, paths, reader):
        call(model, inputs)
    return reader.readings


class _KernelReader:
    def __init__(self) -> None:
        self.readings: list[tuple[str, float, float]] = []

    def begin(self, model: nn.Module) -> None:
        """Nothing is carried over."""

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Nothing: there is no backward pass."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Record one layer."""
        a = activation_of(activation)
        if a is not None and a.dim() > 1 and len(a) > 1:
            self.readings.append((path, *kernel_of(a)))
