"""Finding the way in which the members of a stack run: which ones serve, and which is the fastest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from trainability.errors import UnsupportedModelError
from trainability.introspect.hooks import Taps, tensors_in
from trainability.introspect.run import observing
from trainability.introspect.torch_private import ConvNd
from trainability.lbe.ranks import several_ranks
from trainability.stack import cuda_graphs as graphs
from trainability.stack.direct import layers, layers_are_known, teach_
from trainability.stack.members import Way
from trainability.stack.module import Stack, called

Timer = Callable[[Callable[[], object]], float]
"""Seconds that some work takes."""

# Another order of the additions is worth no less than this: what a choice by the clock gains, a rerun may lose.
_GAIN = 0.95


class _Candidate(NamedTuple):
    way: Way
    channels_last: bool = False

    @property
    def name(self) -> str:
        return f"{self.way}, channels last" if self.channels_last else self.way


def prepare(stack: Stack, x: Tensor) -> None:
    """Learn on inputs ``(E, B, ...)`` which layers overwrite what was tapped, and take the first way that serves.

    The direct way is believed only where every layer returns what it returns mapped. Nothing of the models is changed.
    """
    stack.check_inputs(x)
    model = stack.models[0]
    with observing(model), torch.enable_grad():
        model.train()
        with Taps(model, stack.places, stack.collector), stack.collector.learning():
            model(x[0])
    if stack.way == "vmap" and not _can_be_mapped(stack, x):
        stack.way = "loop"
    if stack.way != "alone":
        stack.turn.by_functions = _draws_by_functions(stack, x)
    if stack.way == "vmap" and layers_are_known(stack.module):
        teach_(stack.module, stack.turn)
        if _direct_agrees(stack, x):
            stack.way = "direct"


def choose(stack: Stack, x: Tensor, timer: Timer | None = None) -> dict[str, float]:
    """Take the fastest way for inputs ``(E, B, ...)``; return the seconds of each that was tried.

    Only a network with convolutions is timed: batched matrix products are never slower than one after another, but a
    grouped convolution may be. What runs one after another is also timed with maps laid out in memory with the channels
    last. ``timer`` says how long a pass takes (`trainability.stack.cuda_graphs.seconds`).
    """
    if not any(isinstance(m, ConvNd) for m in stack.module.modules()):
        return {}
    timer = timer or partial(graphs.seconds, device=x.device)
    seconds: dict[_Candidate, float] = {}
    for candidate in _candidates(stack, x):
        stack.way, stack.channels_last = candidate
        try:
            with rehearsing(stack, x) as work:
                seconds[candidate] = timer(work)
        except RuntimeError:  # an operation that cannot be mapped, or a view that other strides do not have
            if candidate in (_Candidate("loop"), _Candidate("alone")):
                raise
    stack.way, stack.channels_last = min(seconds, key=lambda c: seconds[c] / (_GAIN if c.channels_last else 1))
    return {candidate.name: found for candidate, found in seconds.items()}


def _candidates(stack: Stack, x: Tensor) -> list[_Candidate]:
    one_by_one: list[Way] = ["loop", "streams"] if x.is_cuda else ["loop"]
    if stack.way == "alone":
        one_by_one = ["alone"]
    mapped = [] if stack.way in ("alone", "loop") else [_Candidate("vmap")]
    # Ranks that choose differently would add up statistics of neurons in different orders.
    alone = not several_ranks()
    colored = x.dim() == 5 and x.shape[2] > 1  # of a single channel there is one order
    layouts = [False, True] if alone and colored else [False]
    return mapped + [_Candidate(way, layout) for way in one_by_one for layout in layouts]


@contextmanager
def rehearsing(stack: Stack, x: Tensor) -> Iterator[Callable[[], None]]:
    """Within it, the work that it yields is a forward and backward pass; gradients and buffers are left alone."""
    trained = [p for p in stack.module.parameters() if p.requires_grad]

    def work() -> None:
        with torch.enable_grad():
            reached = [t for t in tensors_in(stack(x).outputs) if t.requires_grad]
            total = torch.stack([t.float().square().mean() for t in reached]).sum()
            torch.autograd.grad(total, trained, allow_unused=True)

    with observing(stack.module, guard=False):
        stack.module.train()
        yield work


def _can_be_mapped(stack: Stack, x: Tensor) -> bool:
    with observing(stack.module), torch.no_grad():
        stack.module.train()
        try:
            stack(x)
        except UnsupportedModelError as error:
            if error.code != "draws-by-function":
                raise
            return False
        except RuntimeError:  # control flow that depends on the data, or an operation without a rule
            return False
    return True


def _draws_by_functions(stack: Stack, x: Tensor) -> bool:
    """True where a member that runs by itself draws from torch's own generators, though its dropouts do not."""
    way = stack.way
    stack.way, stack.turn.by_functions = "loop", False
    try:
        with observing(stack.module), torch.no_grad():
            stack.module.train()
            before = _own_states(x.device)
            stack.one(*next(stack.states()), x[0])
            return before != _own_states(x.device)
    finally:
        stack.way = way


def _direct_agrees(stack: Stack, x: Tensor) -> bool:
    """True where every layer returns directly what it returns mapped, for what it is given mapped.

    Each is given that, so that rounding, which a deep network may amplify, does not add up over the layers.
    """
    module, generators = stack.module, stack.turn.generators
    states = [generator.get_state() for generator in generators]
    mapped: list[Tensor] = []
    agree: list[bool] = []

    def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        mapped.append(output.clone())  # which the next layer may change in place

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> list[Tensor]:
        return [*tensors_in(called(module, (parameters, buffers), own)), *mapped]

    def compare(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        expected = mapped[len(agree)]
        agree.append(_close(output, expected))
        return expected

    try:
        with observing(module), torch.no_grad():
            module.train()
            with _after_each_layer(module, note):
                found = vmap(one)(*stack.tensors(), x)
                last, mapped = found[: len(found) - len(mapped)], found[len(found) - len(mapped) :]
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            stack.way = "direct"
            with _after_each_layer(module, compare):
                agree += [_close(a, b) for a, b in zip(tensors_in(module(x)), last, strict=True)]
    except (RuntimeError, IndexError, ValueError, TypeError):  # a forward that counts dimensions
        return False
    finally:
        stack.way = "vmap"
    return all(agree) and len(agree) == len(mapped) + len(last)


@contextmanager
def _after_each_layer(module: nn.Module, hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _close(a: Tensor, b: Tensor) -> bool:
    """Agreement of two tensors as closely as two ways of computing them agree, measured by the largest entry."""
    rtol = max(1e-3, 4 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=rtol, atol=0.1 * rtol * float(a.abs().max()), equal_nan=True
    )


def _own_states(device: torch.device) -> list[list[int]]:
    """The states of torch's own generators, of the CPU and of a CUDA device."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    return [generator.get_state().tolist() for generator in generators]
