"""Finding the way in which the members of a stack run: which ones serve, and which is the fastest."""

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from trainability.errors import UnsupportedModelError
from trainability.introspect.hooks import Taps, tensors_in
from trainability.introspect.run import call, observing
from trainability.introspect.snapshot import Snapshot, unregistered_tensors
from trainability.introspect.torch_private import ConvNd, version_of
from trainability.lbe.ranks import several_ranks
from trainability.stack import cuda_graphs as graphs
from trainability.stack.direct import layers, layers_are_known, teach_
from trainability.stack.inputs import Inputs, first_tensor, inputs_of, map_inputs
from trainability.stack.members import Way, pad_
from trainability.stack.module import Stack, called, checked
from trainability.stack.results import Results, agree, close, of_members, of_stack

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


def prepare(stack: Stack, inputs: Inputs) -> None:
    """Learn on inputs ``(E, B, ...)`` which layers overwrite what was tapped, and take the first way that serves.

    The direct way is believed only where every layer returns what it returns mapped, and one module in the place of all
    only where it returns what each returns. Nothing of the models is changed.
    """
    stack.check_inputs(inputs)
    each = inputs_of(inputs, len(stack))
    model = stack.models[0]
    first = map_inputs(Tensor.clone, each[0])
    with observing(model), torch.enable_grad():
        model.train()
        with Taps(model, stack.places, stack.collector) if stack.places else nullcontext(), stack.collector.learning():
            changes_itself = _changes(model, partial(call, model, first))
    stack.writes_inputs = any(map(version_of, tensors_in(first)))
    if stack.way == "alone":
        return
    expected = [] if changes_itself else of_members(stack, each)
    if changes_itself or not _one_serves_for_all(stack, inputs, expected):
        stack.run_apart()
    elif stack.way == "vmap" and not _can_be_mapped(stack, inputs, expected):
        stack.way = "loop"
    stack.turn.by_functions = _draws_by_functions(stack, each[0])
    if stack.way != "vmap" or not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return
    if layers_are_known(stack.module):
        teach_(stack.module, stack.turn)
        if _direct_agrees(stack, inputs):
            stack.way = "direct"


def choose(stack: Stack, inputs: Inputs, timer: Timer | None = None) -> dict[str, float]:
    """Take the fastest way for inputs ``(E, B, ...)``; return the seconds of each that was tried.

    Only a network with convolutions is timed: batched matrix products are never slower than one after another, but a
    grouped convolution may be. What runs one after another is also timed with maps laid out in memory with the channels
    last. ``timer`` says how long a pass takes (`trainability.stack.cuda_graphs.seconds`).
    """
    if not any(isinstance(m, ConvNd) for m in stack.module.modules()):
        return {}
    timer = timer or partial(graphs.seconds, device=first_tensor(inputs).device)
    seconds: dict[_Candidate, float] = {}
    for candidate in _candidates(stack, inputs):
        stack.way, stack.channels_last = candidate
        try:
            with rehearsing(stack, inputs) as work:
                seconds[candidate] = timer(work)
        except RuntimeError:  # an operation that cannot be mapped, or a view that other strides do not have
            if candidate in (_Candidate("loop"), _Candidate("alone")):
                raise
    stack.way, stack.channels_last = min(seconds, key=lambda c: seconds[c] / (_GAIN if c.channels_last else 1))
    return {candidate.name: found for candidate, found in seconds.items()}


def _candidates(stack: Stack, inputs: Inputs) -> list[_Candidate]:
    on_streams = first_tensor(inputs).is_cuda and not stack.apart
    one_by_one: list[Way] = ["loop", "streams"] if on_streams else ["loop"]
    if stack.way == "alone":
        one_by_one = ["alone"]
    mapped = [] if stack.way in ("alone", "loop") else [_Candidate("vmap")]
    # Ranks that choose differently would add up statistics of neurons in different orders.
    alone = not several_ranks()
    # Of a single channel there is one order.
    maps = isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.dim() == 5
    layouts = [False, True] if alone and maps and first_tensor(inputs).shape[2] > 1 else [False]
    return mapped + [_Candidate(way, layout) for way in one_by_one for layout in layouts]


@contextmanager
def rehearsing(stack: Stack, inputs: Inputs) -> Iterator[Callable[[], None]]:
    """Within it, the work that it yields is a forward and backward pass; gradients and buffers are left alone."""
    trained = [p for p in stack.module.parameters() if p.requires_grad]

    def work() -> None:
        with torch.enable_grad():
            reached = [t for t in tensors_in(stack(inputs).outputs) if t.requires_grad]
            if reached:
                total = torch.stack([t.float().square().mean() for t in reached]).sum()
                torch.autograd.grad(total, trained, allow_unused=True)

    with stack.observed():
        stack.module.train()
        yield work


def _changes(model: nn.Module, work: Callable[[], object]) -> bool:
    """True where work leaves in the model something else than it found, beside what it writes into buffers.

    Or in the random state of Python or NumPy, from which the members would draw as one.
    """
    before = Snapshot(model, unregistered=True)
    held = [t for t in unregistered_tensors(model) if not t.is_inference()]
    versions, drawn = [version_of(t) for t in held], _random_states()
    checked(work())
    return before.changed() or versions != [version_of(t) for t in held] or drawn != _random_states()


def _random_states() -> list[str]:
    """The random state of Python, and of NumPy where it is loaded."""
    numpy = sys.modules.get("numpy")
    return [str(random.getstate())] + ([str(numpy.random.get_state())] if numpy else [])


def _one_serves_for_all(stack: Stack, inputs: Inputs, expected: list[Results]) -> bool:
    """True where the stack's module, given each member's tensors in turn, gives what that member itself gives.

    It does not where members hold tensors that are neither parameters nor buffers, or functions of one another, nor
    where a backward pass runs parts of the forward again.
    """
    turn, way, seeds = stack.turn, stack.way, stack.turn.seeds
    stack.way, turn.by_functions, turn.seeds = "loop", True, range(len(stack))
    try:
        found = of_stack(stack, inputs, training=True)
        return all(agree(found.of(member), own) for member, own in enumerate(expected))
    except (torch.OutOfMemoryError, UnsupportedModelError):
        raise
    except Exception:  # it may hold what cannot take the place of another's
        return False
    finally:
        stack.way, turn.seeds = way, seeds


def _can_be_mapped(stack: Stack, inputs: Inputs, expected: list[Results]) -> bool:
    """True where a pass can, with the same results, and a prediction.

    Rounding may grow over the layers of a deep network in training; then results are compared in evaluation too.
    """
    if not all(pad_(layer) for layer in stack.module.modules() if isinstance(layer, nn.Embedding)):
        return False
    members = range(len(stack))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")  # it would be a loop all the same
            found = of_stack(stack, inputs, training=True)
            if not all(agree(found.of(member), expected[member]) for member in members):
                found = of_stack(stack, inputs, training=False)
                stack.way = "loop"
                one_by_one = of_stack(stack, inputs, training=False)
                stack.way = "vmap"
                if not all(agree(found.of(member), one_by_one.of(member)) for member in members):
                    return False
            with observing(stack.module):
                stack.predict(inputs_of(inputs, 1)[0])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # control flow that depends on the data, or an operation without a rule
        return False
    finally:
        stack.way = "vmap"
    return True


def _draws_by_functions(stack: Stack, inputs: Inputs) -> bool:
    """True where a member that runs by itself draws from torch's own generators, though its dropouts do not."""
    way = stack.way
    stack.way, stack.turn.by_functions = "loop", False
    device = first_tensor(inputs).device
    own = stack.models[0] if stack.apart else stack.module
    try:
        with observing(own), torch.no_grad():
            own.train()
            before = _own_states(device)
            if stack.apart:
                call(own, inputs)
            else:
                stack.one(*next(stack.states()), inputs)
            return before != _own_states(device)
    finally:
        stack.way = way


def _direct_agrees(stack: Stack, x: Tensor) -> bool:
    """True where every layer returns directly what it returns mapped, for what it is given mapped.

    Each is given that, so that rounding, which a deep network may amplify, does not add up over the layers.
    """
    module, generators = stack.module, stack.turn.generators
    states = [generator.get_state() for generator in generators]
    mapped: list[Tensor] = []
    alike: list[bool] = []

    def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        mapped.append(output.clone())  # which the next layer may change in place

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> list[Tensor]:
        return [*tensors_in(called(module, (parameters, buffers), own)), *mapped]

    def compare(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        expected = mapped[len(alike)]
        alike.append(close(output, expected))
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
                alike += [close(a, b) for a, b in zip(tensors_in(module(x)), last, strict=True)]
    except (RuntimeError, IndexError, ValueError, TypeError):  # a forward that counts dimensions
        return False
    finally:
        stack.way = "vmap"
    return all(alike) and len(alike) == len(mapped) + len(last)


@contextmanager
def _after_each_layer(module: nn.Module, hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own_states(device: torch.device) -> list[list[int]]:
    """The states of torch's own generators, of the CPU and of a CUDA device."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    return [generator.get_state().tolist() for generator in generators]
