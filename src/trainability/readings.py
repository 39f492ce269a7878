"""Turning activations into moments as they pass, for a loss term to take at the end of the pass."""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainability.entropy import is_activation
from trainability.errors import UnsupportedModelError
from trainability.moments import GroupMoments, Moments, Neurons, sample_count, samples
from trainability.taps import reading_name

# Below the first size a call costs more than its arithmetic, so activations are gathered up to the second.
_SMALL = 2**15
_GROUP = 2**17

# Both are asked on every step, so the cheap way; where torch has them no longer, the answer is the safe one.
_saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
_in_backward = getattr(torch._C, "_current_graph_task_id", lambda: -1)


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
        self._versions: list[tuple[str, Tensor, int]] = []
        self._pending: list[tuple[str, str, Tensor]] = []  # small activations of one shape
        self._room = 0  # how many more of them make one group
        self._batches: list[Batch] = []

    def __getstate__(self) -> dict[str, Any]:
        fresh = Reader(self.neurons, self.channel_dim)
        fresh.enabled = False
        return dict(fresh.__dict__)

    def begin(self, model: nn.Module) -> None:
        """Drop what an earlier pass left; one loss belongs to one pass."""
        if torch.compiler.is_compiling() or _in_backward() == -1:
            self.clear()
            self.model_training = model.training

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
        if (
            torch.compiler.is_compiling()
        ):  # in-place changes are traced away, and the compiler fuses better than a group
            self._take(path, name, self._samples(name, activation))
            return
        recomputing = _in_backward() != -1
        if not recomputing:
            self._versions.append((path, activation, activation._version))
        if self._overwritten.get(path, True):
            # Until one pass has shown whether the output is changed in place later, and where it is: a copy.
            activation = activation.clone()
        x = self._samples(name, activation)
        # A checkpoint runs a layer again to restore its saved tensors, not to have it read twice.
        if recomputing:
            if not self._is_small(x):
                Moments.apply(x)  # type: ignore[no-untyped-call]
        elif self._pending and self._pending[0][2].shape == x.shape and self._room:
            self._room -= 1
            self._pending.append((path, name, x))
        elif self._is_small(x):
            self._flush()
            self._room = _GROUP // x.numel() - 1
            self._pending.append((path, name, x))
        else:
            self._take(path, name, x)

    def _is_small(self, x: Tensor) -> bool:
        return x.dim() == 2 and x.numel() <= _SMALL and x.is_cpu and x.dtype in (torch.float32, torch.float64)

    def _samples(self, name: str, activation: Tensor) -> Tensor:
        x = samples(activation, self.neurons, self.channel_dim)
        if sample_count(x) < 2:
            raise ValueError(
                f"layer {name}: an activation of shape {tuple(activation.shape)} has one sample per neuron; LBE needs "
                "a batch of at least two (drop_last=True in the data loader avoids a last batch of one)"
            )
        return x

    def _take(self, path: str, name: str, x: Tensor) -> None:
        mean, variance = Moments.apply(x)  # type: ignore[no-untyped-call]
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
            mean, variance = GroupMoments.apply(*xs)  # type: ignore[no-untyped-call]
        self._batches.append(Batch(paths, names, mean, variance, sample_count(xs[0])))

    def take(self) -> list[Batch]:
        """Hand over the readings since the pass began, after checking that none was overwritten unnoticed."""
        self._flush()
        batches = self._batches.copy()
        for path, activation, version in self._versions:
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


def join(batches: list[Batch]) -> list[Batch]:
    """Join neighbours with as many neurons and samples, so that what follows is one operation for all of them."""
    runs = []
    for _, same in groupby(batches, key=lambda b: (b.variance.shape[-1], b.count, b.variance.device, b.variance.dtype)):
        group = list(same)
        if len(group) == 1:
            runs += group
        else:
            names = tuple(name for batch in group for name in batch.names)
            mean, variance = torch.cat([b.mean for b in group]), torch.cat([b.variance for b in group])
            runs.append(Batch((), names, mean, variance, group[0].count))
    return runs


def _itself(tensor: Tensor) -> Tensor:
    return tensor
