"""Predicting the size of a signal and the angle between two from the weights of a model, before it is run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from trainability.errors import ArgumentError
from trainability.introspect.hooks import Place
from trainability.introspect.readings import read_activations
from trainability.introspect.run import observing, unwrap
from trainability.signal.execute import Moments, moments_of, run
from trainability.signal.graph import Node, SignalGraph
from trainability.signal.propagate import LAYERS, propagate
from trainability.signal.reading import read_recorded

_COLLAPSED = 0.999  # two inputs whose outputs have this cosine differ by 4 % of their size
_DEAD, _EXPLODED = 1e-4, 1e4  # of the mean square that comes in


@dataclass(frozen=True)
class SignalValue:
    """Mean square q and cosine c between two inputs at one place.

    ``measured`` are the two as a run of the model shows them, where `predict` was asked to check. q and c are NaN
    where the theory has ended before.
    """

    path: str
    kind: str
    q: float
    c: float
    detail: str = ""
    measured: tuple[float, float] | None = None


@dataclass(frozen=True)
class Prediction:
    """q and c through a network. Iterates over its layers; `print` shows them.

    Attributes:
        layers: one value per weight layer, nonlinear layer, sum and normalization, in order.
        start: q and c of the inputs.
        stopped: why the prediction ends before the output, if it does.
    """

    start: SignalValue
    layers: tuple[SignalValue, ...]
    stopped: str | None = None
    graph: SignalGraph | None = field(default=None, repr=False, compare=False)

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
        checked = any(value.measured for value in self.layers)
        more = f" {'q measured':>11s} {'c':>8s}" if checked else ""
        lines = [f"{'layer':30s} {'kind':22s} {'q':>10s} {'c':>8s}{more}"]
        for value in (self.start, *self.layers):
            kind = f"{value.kind} {value.detail}".strip()
            seen = f" {value.measured[0]:11.4g} {value.measured[1]:8.4f}" if value.measured else ""
            lines.append(f"{value.path or '(the model)':30s} {kind:22s} {value.q:10.4g} {value.c:8.4f}{seen}")
        return "\n".join([*lines, *([self.stopped] if self.stopped else [])])


def predict(model: nn.Module, inputs: Any, *, check: bool = False) -> Prediction:
    """Predict q and c through every layer of a model at the scale of its present weights.

    A weight layer of mean square σ² of its weights, fan-in n and biases of mean square β² makes q into n σ² q + β². A
    nonlinear layer applies its Q and C map; a sum of weights w mixes Σ w² q, with 2 Σ w w' m m' for summands that have
    means m. A nonlinear layer that takes values which are not normal, as in relu(x + f(x)), maps draws of their
    distribution (`trainability.signal.propagate`). Every input enters with its own mean square and the mean cosine
    of two of the batch. Exact for wide layers of independent random weights: at initialization, not after training.
    Dropout is that of evaluation (in training it multiplies q by 1 / (1 - p)), and pooling is taken to leave q and c
    alone, which averaging over places does not.

    Args:
        model: any module that `read` reads.
        inputs: a batch of two or more, as in `trainability.measure`.
        check: run the model on the batch too, unobserved, and put the measured values beside the predicted ones, and
            where the prediction ends before the output, in their place.

    Raises:
        UnsupportedModelError: the model cannot be read.
        ArgumentError: there are not two inputs to compare.

    Reference: Poole et al. (2016), eq. 3 to 5; Martens et al. (2021), section 3.

    >>> import torch
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
    graph, recording = read_recorded(model, inputs)
    starts: dict[str, tuple[float, float]] = {}
    for name, tensor in recording.inputs.items():
        if tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) > 1 and not tensor.is_meta:
            starts[name] = moments_of(tensor)[:2]
    reached = [node.detail for node in graph.nodes if node.kind == "input"]
    if not starts or any(name not in starts for name in reached):
        raise ArgumentError(
            "a prediction needs a batch of two inputs or more, of floating-point numbers", code="two-inputs"
        )
    prediction = predicted(graph, {**starts, "": starts[reached[0]]})
    if not check:
        return prediction
    with observing(model):
        seen = run(recording, {node.at for node in graph.nodes if node.at is not None})
    return _beside(prediction, graph, seen)


def predicted(graph: SignalGraph, starts: Mapping[str, tuple[float, float]]) -> Prediction:
    """The prediction for a graph, from q and c of its inputs."""
    found = propagate(graph, starts)
    values = tuple(
        SignalValue(node.path, node.kind, state.q, state.c, _detail(node))
        for node, state in zip(graph.nodes, found.states, strict=False)
        if node.kind in LAYERS and 0 < state.q < math.inf
    )
    return Prediction(SignalValue("", "input", *starts[""]), values, found.stopped, graph)


def _detail(node: Node) -> str:
    return node.activation.name if node.activation is not None else node.detail if node.kind == "normalize" else ""


def _beside(prediction: Prediction, graph: SignalGraph, seen: Mapping[Any, Moments]) -> Prediction:
    """The prediction with measured values, and with those alone where it has ended."""
    layers = []
    for k, node in enumerate(node for node in graph.nodes if node.kind in LAYERS):
        own = SignalValue(node.path, node.kind, math.nan, math.nan, _detail(node))
        value = prediction.layers[k] if k < len(prediction.layers) else own
        found = seen.get(node.at)
        layers.append(replace(value, measured=found and found[:2]))
    return replace(prediction, layers=tuple(layers))


def measured(
    model: nn.Module, inputs: Any, paths: Sequence[str | Place] | None = None
) -> list[tuple[str, float, float]]:
    """q and c at the outputs of modules in one run of the model on a batch, in the order of execution.

    ``paths`` are those of the modules, or other places; by default all modules that have none inside.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    >>> [path for path, q, c in measured(model, torch.randn(8, 4), ["1"])]
    ['1']
    """
    model = unwrap(model)
    if paths is None:
        paths = [path for path, module in model.named_modules() if path and not list(module.children())]

    def size_and_angle(a: Tensor) -> tuple[float, float] | None:
        return moments_of(a)[:2] if a.dim() > 1 and len(a) > 1 else None

    return [(reading.name, *reading.value) for reading in read_activations(model, inputs, paths, size_and_angle)]
