"""The points of a plane, one after another in one network, or many at once as the members of a stack."""

import copy
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainability.data.dataset import Split
from trainability.data.seeding import drawing
from trainability.introspect.hooks import tensors_in
from trainability.introspect.outputs import first_of, map_tensors
from trainability.introspect.run import call
from trainability.introspect.torch_private import ConvNd, RunningNorm
from trainability.stack.cuda_graphs import synchronize
from trainability.stack.direct import teach_
from trainability.stack.inputs import map_inputs
from trainability.stack.memory import bytes_per_member, members_that_fit
from trainability.stack.module import Stack
from trainability.stack.results import close
from trainability.stack.ways import prepare
from trainability.surface.plane import Plane
from trainability.surface.scores import Batches, Scores

# The weights of those that run at once on a CPU should stay in its caches; a few gain nonetheless.
_CACHED = 2**24
_FEW, _MOST, _MOST_ON_DEVICE = 4, 32, 256
_TRIED = 8  # samples on which it is found out whether a model can be stacked
_TURNS = 2


class Runner(Protocol):
    """Networks at as many points."""

    module: nn.Module
    members: int

    def run(self, inputs: Any) -> Any:
        """Run the networks in the modes in which their modules are."""

    def outputs(self, inputs: Any) -> Sequence[Any]:
        """The outputs of each network, in evaluation."""


class OneByOne:
    """One network, which takes the weights of each point in turn."""

    members = 1

    def __init__(self, model: nn.Module) -> None:
        self.module = model

    def run(self, inputs: Any) -> Any:
        """Run it."""
        return call(self.module, map_tensors(Tensor.clone, inputs))  # which it may change in place

    def outputs(self, inputs: Any) -> Sequence[Any]:
        """Its outputs."""
        return [self.run(inputs)]


class AtOnce:
    """Members of a stack that maps them.

    Args:
        model: which is copied.
        members: their number.
        direct: whether every layer knows members.
    """

    def __init__(self, model: nn.Module, members: int, direct: bool) -> None:
        self._stack = Stack([copy.deepcopy(model) for _ in range(members)])
        self.module, self.members, self._direct = self._stack.module, members, direct
        if direct:
            teach_(self.module, self._stack.turn)
            self._stack.way = "direct"

    def run(self, inputs: Any) -> Any:
        """Run all, each on the same inputs."""
        return self._stack(map_inputs(lambda t: t.expand(self.members, *t.shape), inputs)).outputs

    def outputs(self, inputs: Any) -> Sequence[Any]:
        """The outputs of each."""
        self.module.eval()
        found = self.run(inputs) if self._direct else self._stack.predict(inputs)
        return [map_tensors(lambda t, e=e: t[e], found) for e in range(self.members)]


def means_at(
    runner: Runner, plane: Plane, points: Tensor, batches: Batches, scores: Scores, recalibrated: bool
) -> Tensor:
    """The means of all scores at points ``(N, 2)``, ``(N, scores)``; as many at once as the runner has networks."""
    found = []
    for group in points.split(runner.members):
        full = torch.cat([group, group[-1:].expand(runner.members - len(group), 2)])
        plane.write_(runner.module, full)
        with torch.no_grad(), drawing(0):  # the same at every point, should the model draw random numbers
            if recalibrated:
                _recalibrate_(runner, batches)
            found.append(_means(runner, batches, scores)[: len(group)])
    return torch.cat(found)


def _means(runner: Runner, batches: Batches, scores: Scores) -> Tensor:
    """The means over all samples, for each network."""
    runner.module.eval()
    total, count = torch.zeros(runner.members, len(scores.names), dtype=torch.float64), 0
    for batch in batches:
        each = runner.outputs(batch.inputs)
        total += torch.stack([scores.sums(outputs, batch) for outputs in each]).to(total)
        count += len(batch)
    return total / count


def _recalibrate_(runner: Runner, batches: Batches) -> None:
    """Make running statistics the mean of those of all batches, as `torch.optim.swa_utils.update_bn` does.

    Everything else, dropout included, runs in evaluation. A batch of one sample has no variance, and is left out.
    """
    norms: list[Any] = [m for m in runner.module.modules() if isinstance(m, RunningNorm) and m.running_mean is not None]
    for norm in norms:
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
    runner.module.eval()
    number = 0
    for batch in batches if norms else ():
        if len(batch) > 1:
            number += 1
            for norm in norms:
                norm.momentum = 1 / number
                norm.train()
            runner.run(batch.inputs)


def runner_of(model: nn.Module, plane: Plane, batch: Split, wanted: int, members: int | None) -> tuple[Runner, str]:
    """Networks that run so many points, and why these are one after another where they are.

    Args:
        model: a copy that may be changed.
        plane: of the points.
        batch: of which the memory is told.
        wanted: the number of points.
        members: how many run at once; None for as many as are worth it and fit into memory.
    """
    alone = OneByOne(model)
    if members == 1:
        return alone, "as asked for"
    try:
        direct = _way(model, plane, batch)
        if direct is None:
            return alone, "the model cannot be mapped over its weights"
        most = members or _worthwhile(model, batch)
        if min(most, wanted) < 2:
            return alone, "there is no memory for more"
        if members is None and any(isinstance(m, ConvNd) for m in model.modules()):
            few = AtOnce(model, min(most, _FEW), direct)
            plane.write_(few.module, torch.zeros(few.members, 2))
            if _seconds(few, batch) > _seconds(alone, batch) * few.members:
                return alone, "which is faster"
        turns = -(-wanted // most)
        return AtOnce(model, -(-wanted // turns), direct), ""
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a pass in training, by which stacks are judged, while the model itself may run
        return alone, f"the model cannot be stacked: {error}"


def _way(model: nn.Module, plane: Plane, batch: Split) -> bool | None:
    """True for layers that know members, False for mapping, None where two members differ from the model itself."""
    points = torch.tensor([[0.0, 0.0], [0.5, -0.25]])
    inputs = first_of(batch.inputs, _TRIED)
    trial = Stack([copy.deepcopy(model) for _ in range(2)])
    plane.write_(trial.module, points)
    prepare(trial, map_inputs(lambda t: torch.stack([t, t]), inputs))
    if trial.way not in ("vmap", "direct") or trial.writes_inputs:
        return None
    found = list(tensors_in(trial.predict(inputs)))
    for member, point in enumerate(points.split(1)):
        plane.write_(model, point)
        model.eval()
        with torch.no_grad():
            expected = list(tensors_in(OneByOne(model).run(inputs)))
        if not all(close(t[member], own) for t, own in zip(found, expected, strict=True)):
            return None
    return trial.way == "direct"


def _worthwhile(model: nn.Module, batch: Split) -> int:
    """The number of networks that run at once, by what the device has."""
    device = next(model.parameters()).device
    fit = members_that_fit(bytes_per_member(model, batch.inputs), device) // 2
    if device.type != "cpu":
        return min(fit, _MOST_ON_DEVICE)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return min(fit, max(_FEW, min(_MOST, _CACHED // weights)))


def _seconds(runner: Runner, batch: Split) -> float:
    """The time that all networks take for a batch, the least of a few."""
    times = []
    with torch.no_grad():
        for _ in range(_TURNS + 1):
            begin = time.perf_counter()
            runner.outputs(batch.inputs)
            synchronize(next(runner.module.parameters()).device)
            times.append(time.perf_counter() - begin)
    return min(times[1:])
