"""Turning activations into moments as they pass, for a loss term to take at the end of the pass."""

import weakref
from collections.abc import Callable
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
from trainability.moments import GroupMoments, Moments, Neurons, sample_count, samples, statistics
from trainability.taps import reading_name

# Below the first size a call costs more than its arithmetic, so activations are gathered up to the second.
_SMALL = 2**15
_GROUP = 2**17

# Asked on every step, so the cheap way; where torch has it no longer, the answer is the one that is always right.
_saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)


@dataclass
class Batch:
    """Readings whose statistics were taken together: mean and variance ``(readings, n)`` over ``count`` samples."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    mean: Tensor
    variance: Tensor
    count: int


class Reader:
    """Turns activations into batches of moments as they pass, for the next ``lbe(loss)`` to take."""

    def __init__(self, neurons: Neurons, channel_dim: int | None) -> None:
        self.neurons: Neurons = neurons
        self.channel_dim = channel_dim
        self.enabled = True
        self.model_training = True
        self.skipped: dict[str, str] = {}
        self._overwritten: dict[str, bool] = {}  # whether the model changes this layer's output in place
        self._versions: list[tuple[str, Callable[[], Tensor | None], int]] = []
        self._pending: list[tuple[str, str, Tensor]] = []  # small activations of one shape
        self._room = 0  # how many more of them make one group
        self._batches: list[Batch] = []

    def __getstate__(self) -> dict[str, Any]:
        fresh = Reader(self.neurons, self.channel_dim)
        fresh.enabled = False
        return dict(fresh.__dict__)

    def begin(self, model: nn.Module) -> None:
        """Drop what an earlier pass left; one loss belongs to one pass."""
        self.clear()
        self.model_training = model.training
        if self.enabled and model.training:
            self.skipped.clear()

    def clear(self) -> None:
        """Forget all readings."""
        self._versions.clear()
        self._pending.clear()
        self._batches.clear()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Take the moments of one activation, now or with the next few of its shape."""
        if not self.enabled or not self.model_training:
            return
        name = path if call == 1 else reading_name(path, call)
        if not is_activation(activation):
            self.skipped[name] = "its output holds no floating-point tensor with values"
            return
        compiling = torch.compiler.is_compiling()
        # Whether a graph for the compiler overwrites the output later is not known here, so there it is always a copy.
        x = samples(activation.clone() if compiling else self._safe(path, activation), self.neurons, self.channel_dim)
        if sample_count(x) < 2:
            self.skipped[name] = f"one sample per neuron (shape {tuple(activation.shape)}); two are the least"
            return
        if compiling:
            self._keep(path, name, x, *Moments.apply(x))
            return
        if not torch.is_grad_enabled():
            self._keep(path, name, x, *statistics(x))
            return
        if self._pending and self._pending[0][2].shape == x.shape and self._room:
            self._room -= 1
            self._pending.append((path, name, x))
        elif self._is_small(x):
            self._flush()
            self._room = _GROUP // x.numel() - 1
            self._pending.append((path, name, x))
        else:
            self._keep(path, name, x, *Moments.apply(x))
        overwritten = self._overwritten.get(path)
        if overwritten is None:  # held until the pass has shown
            self._versions.append((path, partial(_itself, activation), activation._version))
        elif not overwritten:  # autograd holds it where it will be needed
            self._versions.append((path, weakref.ref(x), x._version))

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Save again what `read` saved in the forward pass, since the checkpoint counts the saved tensors."""
        if self.enabled and self.model_training and is_activation(activation):
            x = samples(self._safe(path, activation), self.neurons, self.channel_dim)
            if sample_count(x) > 1 and not self._is_small(x):
                Moments.apply(x)

    def _safe(self, path: str, activation: Tensor) -> Tensor:
        """A copy, until one pass has shown whether the output is changed in place later, and where it is."""
        return activation.clone() if self._overwritten.get(path, True) else activation

    def _is_small(self, x: Tensor) -> bool:
        return x.dim() == 2 and x.numel() <= _SMALL and x.is_cpu and x.dtype in (torch.float32, torch.float64)

    def _keep(self, path: str, name: str, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        self._flush()
        self._batches.append(Batch((path,), (name,), mean.unsqueeze(0), variance.unsqueeze(0), sample_count(x)))

    def _flush(self) -> None:
        if not self._pending:
            return
        paths, names, xs = zip(*self._pending, strict=True)
        self._pending.clear()
        # A group may reach over several checkpointed regions. What it saves must not count among the tensors that
        # one of them saves, or the recomputation would miss them; hooks of its own keep it out.
        with saved_tensors_hooks(_itself, _itself) if _saving_hooks(True) else nullcontext():
            mean, variance = GroupMoments.apply(*xs)
        self._batches.append(Batch(paths, names, mean, variance, sample_count(xs[0])))

    def take(self) -> list[Batch]:
        """Hand over the readings since the pass began, after checking that none was overwritten unnoticed."""
        self._flush()
        batches = self._batches.copy()
        for path, find, version in self._versions:
            activation = find()
            if activation is None:  # gone with a checkpointed region, which runs it again
                continue
            changed = activation._version != version
            if changed and self._overwritten.get(path) is False:
                self._overwritten[path] = True
                self.clear()
                raise UnsupportedModelError(
                    path,
                    "its output was changed in place in this pass though not in earlier ones; from now on LBE "
                    "keeps a copy, so repeat the step",
                )
            self._overwritten[path] = changed or self._overwritten.get(path, False)
        self.clear()
        return batches


def join(batches: list[Batch], dim: int = 0) -> list[Batch]:
    """Join neighbours with as many neurons and samples, so that what follows is one operation for all of them.

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
            runs.append(Batch((), names, mean, variance, group[0].count))
    return runs


def _itself(tensor: Tensor) -> Tensor:
    return tensor
