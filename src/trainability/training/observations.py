"""Observations of networks in training: their flow and signal, single neurons, and how these depend on one another."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainability.dependence.dropout import dropout_effects
from trainability.dependence.pairs import evenly_spaced, independence, varying_neurons
from trainability.errors import TrainabilityError, UnsupportedModelError
from trainability.flow import measure
from trainability.introspect.hooks import INPUT_OF, Place, reading_name
from trainability.introspect.outputs import first_of
from trainability.introspect.readings import read_activations
from trainability.introspect.run import call, observing
from trainability.introspect.weight_layers import is_weight_layer
from trainability.nn.ic import ICLayer
from trainability.signal import measured, predict
from trainability.stack.module import Stack
from trainability.training.history import (
    FlowPoint,
    Histogram,
    History,
    IndependencePoint,
    InputIndependence,
    LayerDropout,
    NeuronPoint,
    SignalPoint,
)

T = TypeVar("T")


def _first_activations(model: nn.Module, inputs: Any, paths: Iterable[str]) -> dict[str, Tensor]:
    """The activations that modules return in the first call of each."""
    found = read_activations(model, inputs, paths, Tensor.clone)
    return {reading.name: reading.value for reading in found if reading.call == 1}


def neuron_histograms(model: nn.Module, inputs: Any, bins: int = 40) -> list[Histogram]:
    """Histograms of one neuron before the nonlinearity of the first, a middle and the last hidden layer.

    The neuron is that of median variance, so neither the liveliest nor a dead one.
    """
    layers = [name for name, module in model.named_modules() if is_weight_layer(module)][:-1]
    chosen = {index: layers[index] for index in sorted({0, len(layers) // 2, len(layers) - 1})} if layers else {}
    seen = _first_activations(model, inputs, chosen.values())
    rows = []
    for index, name in chosen.items():
        if name not in seen:  # used for its weight alone, as in torch's attention
            continue
        activation = seen[name].flatten(1)
        variance = activation.var(0)
        values = activation[:, variance.argsort()[len(variance) // 2]]
        if not bool(values.isfinite().all()):
            continue
        low, high = float(values.min()), float(values.max())
        pad = max(1e-3, 0.05 * (high - low))
        counts = torch.histc(values, bins=bins, min=low - pad, max=high + pad)
        entropy = float(0.5 * torch.log1p(2 * torch.pi * torch.e * values.var()))
        rows.append(Histogram(index + 1, name, low - pad, high + pad, counts.tolist(), entropy))
    return rows


def signal_values(model: nn.Module, inputs: Any, layers: list[str]) -> tuple[list[float], list[float]]:
    """Mean square q and mean cosine c between two inputs after each layer, over 128 inputs at the most."""
    modules = dict(model.named_modules())
    once = dict.fromkeys(name.partition("#")[0] for name in layers)
    places = [Place(name.removeprefix(INPUT_OF), given=name.startswith(INPUT_OF)) for name in once]
    calls: Counter[str] = Counter()
    seen = {}
    for path, q, c in measured(model, first_of(inputs, 128), [place for place in places if place.path in modules]):
        calls[path] += 1
        seen[reading_name(path, calls[path])] = q, c
    return [seen[p][0] for p in layers if p in seen], [seen[p][1] for p in layers if p in seen]


def independence_of_inputs(model: nn.Module, inputs: Any, most: int = 8) -> list[InputIndependence]:
    """Independence of what weight layers receive, in training mode: of so many, evenly spaced."""
    paths = [path for path, module in model.named_modules() if is_weight_layer(module)][1:]
    chosen = evenly_spaced(len(paths), most).tolist()
    taken: dict[str, Tensor] = {}

    def take(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                taken.setdefault(path, args[0].detach().clone())

        return hook

    handles = [model.get_submodule(paths[i]).register_forward_pre_hook(take(paths[i])) for i in chosen]
    try:
        with observing(model), torch.no_grad():
            model.train()
            call(model, first_of(inputs, 256))
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for index in chosen:
        values = taken.get(paths[index])
        if values is not None and len(values) > 8 and bool(values.isfinite().all()):
            found = independence(values, most_pairs=8, most_samples=256)
            if found is not None:
                rows.append(InputIndependence(index + 2, paths[index], found))
    return rows


def dropout_of(model: nn.Module, inputs: Any) -> LayerDropout | None:
    """Effects of dropout on the two most dependent neurons that the middle IC layer normalizes; None without one."""
    layers = [module for module in model.modules() if isinstance(module, ICLayer)]
    if not layers:
        return None
    middle = layers[len(layers) // 2]
    path = next(path for path, module in model.named_modules() if module is middle.norm)
    seen = _first_activations(model, inputs, [path])[path]
    values = varying_neurons(seen, "channel" if middle.kind in ("2d", "3d") else "position")
    if values.shape[1] < 2 or not bool(values.isfinite().all()):
        return None
    rho = torch.corrcoef(values.T).abs().triu(1)
    rho[rho > 0.999] = 0  # copies of one another have no information that could be estimated
    first, second = divmod(int(rho.argmax()), rho.shape[1])
    return LayerDropout(path, dropout_effects(values[:, first], values[:, second]))


def predicted_signal(model: nn.Module, inputs: Any, layers: list[str]) -> tuple[list[float], list[float]] | None:
    """q and c after each layer by the scale of the weights; None where they do not tell, as with BatchNorm."""
    try:
        values = {v.path: v for v in predict(model, first_of(inputs, 128)) if v.kind == "nonlinear"}
    except UnsupportedModelError:
        return None
    known = [values[path] for path in layers if path in values]
    return ([v.q for v in known], [v.c for v in known]) if len(known) == len(layers) else None


class Observer:
    """Observes the networks of a stack, each into its history; what cannot be observed is left out.

    Args:
        stack: in training.
        histories: one per member; those that diverged are left alone.
        inputs: a batch, as `trainability.measure` takes it.
    """

    def __init__(self, stack: Stack, histories: Sequence[History], inputs: Any) -> None:
        self._stack, self._histories, self._inputs = stack, histories, inputs
        self._places: list[Place] | None = None  # found once: the members are of one architecture

    def start(self) -> None:
        """Observe all before the first step."""
        for history in self._histories:
            history.status = "training"
        self.look(0)
        # The members are of one architecture, so what their weights predict differs by chance alone.
        predicted = None
        if not self._stack.sharded:
            found = predicted_signal(self._stack.models[0], self._inputs, self._histories[0].layers)
            predicted = SignalPoint(0, *found) if found else None
        for history, model in self._training():
            history.predicted = predicted
            self._neurons(0, history, model)

    def look(self, step: int) -> None:
        """Observe the flow and the signal after a step."""
        for history, model in self._training():
            flow = _tried(partial(measure, where=self._places), model, self._inputs)
            if not flow:
                continue
            self._places = list(flow.selection.places)
            history.layers = [layer.name for layer in flow]
            entropy, std = [layer.entropy for layer in flow], [layer.std for layer in flow]
            history.flow.append(FlowPoint(step, entropy, std))
            signal = _tried(signal_values, model, self._inputs, history.layers)
            if signal and signal[0]:
                history.signal.append(SignalPoint(step, *signal))

    def finish(self, step: int, status: str) -> None:
        """Observe single neurons after the last step."""
        for history, model in self._training():
            history.status = status
            self._neurons(step, history, model)
            history.dropout = _tried(dropout_of, model, self._inputs)

    def _training(self) -> list[tuple[History, nn.Module]]:
        pairs = zip(self._histories, self._stack.models, strict=True)
        return [(history, model) for history, model in pairs if history.status == "training"]

    def _neurons(self, step: int, history: History, model: nn.Module) -> None:
        if (neurons := _tried(neuron_histograms, model, self._inputs)) is not None:
            history.neurons.append(NeuronPoint(step, neurons))
        if (independent := _tried(independence_of_inputs, model, self._inputs)) is not None:
            history.independence.append(IndependencePoint(step, independent))


def _tried(observe: Callable[..., T], *arguments: Any) -> T | None:
    """What is observed, or None where a model does not allow it: that must not stop its training."""
    try:
        return observe(*arguments)
    except (TrainabilityError, RuntimeError):
        return None
