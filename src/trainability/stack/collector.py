"""Taking the moments of a stack's layers as their activations pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from trainability.introspect.hooks import reading_name
from trainability.introspect.torch_private import version_of
from trainability.lbe.statistics import BatchStatistics
from trainability.moments import MappedMoments, Moments, Neurons, StackMoments, samples, stack_samples
from trainability.stack.members import Turn


class Collector:
    """A reader of taps that takes the moments of the activations of one member, or of all where it is mapped."""

    def __init__(self, neurons: Neurons, turn: Turn) -> None:
        self.neurons = neurons
        self.turn = turn
        self._counts: dict[str, int] = {}
        self._overwritten: set[str] = set()  # layers whose output the model changes in place later
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._versions: list[tuple[str, Tensor, int]] | None = None
        self._training = True

    def begin(self, model: nn.Module) -> None:
        """Forget an earlier pass."""
        self._training = model.training
        self._moments.clear()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Take the moments of one activation."""
        if activation is None or activation.numel() == 0 or not self._training:
            return
        if self._versions is not None:
            self._versions.append((path, activation, version_of(activation)))
            return
        name = reading_name(path, call)
        x = activation.clone() if path in self._overwritten else activation
        if self.turn.way == "direct":
            moments = StackMoments.apply(stack_samples(x, self.neurons))
        elif self.turn.way == "vmap":
            moments = MappedMoments.apply(x, self.neurons)
        else:
            moments = Moments.apply(samples(x, self.neurons))
        self._moments[name] = moments
        self._counts[name] = x.numel() // self._moments[name][0].numel()

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Nothing is kept of a recomputation."""

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Around a pass that is not mapped: note which activations are overwritten after they were read."""
        versions: list[tuple[str, Tensor, int]] = []
        self._versions = versions
        yield
        self._versions = None
        self._overwritten |= {path for path, activation, version in versions if version_of(activation) != version}

    def take(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Hand over the moments."""
        moments = dict(self._moments)
        self._moments.clear()
        return moments

    def batches(self, moments: dict[str, Any]) -> list[BatchStatistics]:
        """Turn moments ``(E, n)`` into what the LBE term takes."""
        return [
            BatchStatistics(
                (name.partition("#")[0],), (name,), mean.unsqueeze(1), variance.unsqueeze(1), self._counts[name]
            )
            for name, (mean, variance) in moments.items()
        ]
