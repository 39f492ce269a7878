"""Turning activations into moments as they pass, for a loss term to take at the end of the pass."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainability.entropy import is_activation
from trainability.errors import UnsupportedModelError
from trainability.introspect.hooks import reading_name
from trainability.introspect.torch_private import saving_hooks, version_of
from trainability.moments import (
    GroupMoments,
    Moments,
    Neurons,
    moments,
    sample_count,
    samples,
    statistics,
    transformed,
)

# Up to the first size a call costs more than its arithmetic, so activations are gathered, up to the second together.
_SMALL = 2**16
_GROUP = 2**20


@dataclass
class BatchStatistics:
    """Readings whose statistics were taken together: mean and variance ``(readings, n)`` over ``count`` samples."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    mean: Tensor
    variance: Tensor
    count: int


class _Pass:
    """Readings of one pass of the model, taken or about to be."""

    def __init__(self) -> None:
        self.versions: list[tuple[str, Callable[[], Tensor | None], int]] = []
        self.pending: list[tuple[str, str, Tensor]] = []  # small activations of one shape
        self.room = 0  # how many more of them make one group
        self.batches: list[BatchStatistics] = []

    def clear(self) -> None:
        self.versions.clear()
        self.pending.clear()
        self.batches.clear()

    def __bool__(self) -> bool:
        return bool(self.batches or self.pending)


class StatisticsReader:
    """Turns activations into batches of moments as they pass, for the next ``lbe(loss)`` to take.

    Passes with a graph and passes without one are kept apart, and one in evaluation is not read, so that none of the
    latter disturbs a training pass whose loss is still to come. ``owner`` is the module whose mode says whether to read
    at all; it is asked where that is needed, since modes are set in many ways.
    """

    def __init__(self, neurons: Neurons, channel_dim: int | None, owner: nn.Module | None) -> None:
        self.neurons: Neurons = neurons
        self.channel_dim = channel_dim
        self.owner = owner
        self.model_training = True  # in the latest pass
        self.with_graph = True  # the latest pass
        self._saving = True  # whether the latest pass with a graph was read, and so is what a checkpoint runs again
        self.skipped: dict[str, str] = {}
        self._overwritten: dict[str, bool] = {}  # whether the model changes this layer's output in place
        self._graph, self._plain = _Pass(), _Pass()

    def __getstate__(self) -> dict[str, Any]:
        return dict(StatisticsReader(self.neurons, self.channel_dim, None).__dict__)

    @property
    def reading(self) -> bool:
        """True where what passes now is read."""
        return self.model_training and self.owner is not None and self.owner.training

    @property
    def waiting(self) -> bool:
        """True where readings of a pass with a graph wait for their loss."""
        return bool(self._graph)

    @property
    def without_graph(self) -> bool:
        """True where there are readings, but of a pass without a graph."""
        return bool(self._plain)

    def begin(self, model: nn.Module) -> None:
        """Drop what an earlier pass of the same kind left; one loss belongs to one pass."""
        self.model_training, self.with_graph = model.training, torch.is_grad_enabled()
        if self.with_graph:
            self._saving = self.reading
        if self.reading:
            self.skipped.clear()
            self._plain.clear()
            if self.with_graph:
                self._graph.clear()

    def clear(self) -> None:
        """Forget all readings."""
        self._graph.clear()
        self._plain.clear()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Take the moments of one activation, now or with the next few of its shape."""
        if not self.reading:
            return
        name = path if call == 1 else reading_name(path, call)
        if not is_activation(activation):
            self.skipped[name] = "its output holds no floating-point tensor with values"
            return
        # Whether what torch.compile or torch.func made of the model overwrites the output later is not known here, so
        # there it is always a copy.
        apart = torch.compiler.is_compiling() or transformed(activation)
        x = samples(activation.clone() if apart else self._safe(path, activation), self.neurons, self.channel_dim)
        if sample_count(x) < 2:
            self.skipped[name] = f"one sample per neuron (shape {tuple(activation.shape)}); two are the least"
            return
        now = self._graph if self.with_graph else self._plain
        if apart:
            self._keep(now, path, name, x, *moments(x))
            return
        if not torch.is_grad_enabled():
            self._keep(now, path, name, x, *statistics(x))
            return
        if now.pending and now.pending[0][2].shape == x.shape and now.room:
            now.room -= 1
            now.pending.append((path, name, x))
        elif self._is_small(x):
            self._flush(now)
            now.room = _GROUP // x.numel() - 1
            now.pending.append((path, name, x))
        else:
            self._keep(now, path, name, x, *Moments.apply(x))
        overwritten = self._overwritten.get(path)
        if overwritten is None:  # held until the pass has shown
            now.versions.append((path, partial(_unchanged, activation), version_of(activation)))
        elif not overwritten:  # autograd holds it where it will be needed
            now.versions.append((path, weakref.ref(x), version_of(x)))

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Save again what `read` saved in the forward pass, since the checkpoint counts the saved tensors."""
        if self._saving and is_activation(activation):
            x = samples(self._safe(path, activation), self.neurons, self.channel_dim)
            if sample_count(x) > 1 and not self._is_small(x):
                Moments.apply(x)

    def _safe(self, path: str, activation: Tensor) -> Tensor:
        """A copy, until one pass has shown whether the output is changed in place later, and where it is."""
        return activation.clone() if self._overwritten.get(path, True) else activation

    def _is_small(self, x: Tensor) -> bool:
        return x.dim() == 2 and x.numel() <= _SMALL and x.is_cpu and x.dtype in (torch.float32, torch.float64)

    def _keep(self, now: _Pass, path: str, name: str, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        self._flush(now)
        now.batches.append(BatchStatistics((path,), (name,), mean.unsqueeze(0), variance.unsqueeze(0), sample_count(x)))

    def _flush(self, now: _Pass) -> None:
        if not now.pending:
            return
        paths, names, xs = zip(*now.pending, strict=True)
        now.pending.clear()
        # A group may reach over several checkpointed regions. What it saves must not count among the tensors that
        # one of them saves, or the recomputation would miss them; hooks of its own keep it out.
        with saved_tensors_hooks(_unchanged, _unchanged) if saving_hooks(True) else nullcontext():
            mean, variance = GroupMoments.apply(*xs)
        now.batches.append(BatchStatistics(paths, names, mean, variance, sample_count(xs[0])))

    def take(self) -> list[BatchStatistics]:
        """Hand over the readings of the latest pass, after checking that none was overwritten unnoticed.

        Where gradients are on, that is the latest pass with a graph.
        """
        now = self._graph if torch.is_grad_enabled() or not self._plain else self._plain
        self._flush(now)
        batches = now.batches.copy()
        for path, find, version in now.versions:
            activation = find()
            if activation is None:  # gone with a checkpointed region, which runs it again
                continue
            changed = version_of(activation) != version
            if changed and self._overwritten.get(path) is False:
                self._overwritten[path] = True
                self.clear()
                raise UnsupportedModelError(
                    path,
                    "its output was changed in place in this pass though not in earlier ones; from now on LBE "
                    "keeps a copy, so repeat the step",
                    code="changed-in-place",
                )
            self._overwritten[path] = changed or self._overwritten.get(path, False)
        now.clear()
        return batches


def merge(batches: Sequence[BatchStatistics], dim: int = 0) -> list[BatchStatistics]:
    """Merge neighbors with as many neurons and samples, so that what follows is one operation for all of them.

    ``dim`` is the dimension of the readings: 1 for a stack, whose statistics are ``(E, readings, n)``.
    """
    runs = []
    for _, same in groupby(batches, key=lambda b: (b.variance.shape[-1], b.count, b.variance.device, b.variance.dtype)):
        group = list(same)
        if len(group) == 1:
            runs += group
        else:
            names = tuple(name for batch in group for name in batch.names)
            mean, variance = torch.cat([b.mean for b in group], dim), torch.cat([b.variance for b in group], dim)
            runs.append(BatchStatistics((), names, mean, variance, group[0].count))
    return runs


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
