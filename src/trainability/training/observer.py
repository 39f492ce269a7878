"""The observer of a stack in training: what its networks hold, on a fixed batch, into their histories."""

from collections.abc import Sequence

from torch import Tensor, nn

from trainability.flow import measure
from trainability.stack.module import Stack
from trainability.training.history import FlowPoint, History, IndependencePoint, NeuronPoint, SignalPoint
from trainability.training.observations import (
    dropout_of,
    independence_of_inputs,
    neuron_histograms,
    predicted_signal,
    signal_values,
)


class Observer:
    """Observes the networks of a stack, each into its history.

    Args:
        stack: in training.
        histories: one per member; those that diverged are left alone.
        inputs: the batch ``(B, ...)``.
    """

    def __init__(self, stack: Stack, histories: Sequence[History], inputs: Tensor) -> None:
        self._stack, self._histories, self._inputs = stack, histories, inputs

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
            flow = measure(model, self._inputs)
            history.layers = [layer.name for layer in flow]
            entropy, std = [layer.entropy for layer in flow], [layer.std for layer in flow]
            history.flow.append(FlowPoint(step, entropy, std))
            history.signal.append(SignalPoint(step, *signal_values(model, self._inputs, history.layers)))

    def finish(self, step: int, status: str) -> None:
        """Observe single neurons after the last step."""
        for history, model in self._training():
            history.status = status
            self._neurons(step, history, model)
            history.dropout = dropout_of(model, self._inputs)

    def _training(self) -> list[tuple[History, nn.Module]]:
        pairs = zip(self._histories, self._stack.models, strict=True)
        return [(history, model) for history, model in pairs if history.status == "training"]

    def _neurons(self, step: int, history: History, model: nn.Module) -> None:
        history.neurons.append(NeuronPoint(step, neuron_histograms(model, self._inputs)))
        history.independence.append(IndependencePoint(step, independence_of_inputs(model, self._inputs)))
