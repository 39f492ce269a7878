"""Several networks of one architecture as one module."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call, vmap

from trainability.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from trainability.introspect.hooks import Place, Taps, tensors_in
from trainability.introspect.outputs import map_tensors, with_tensors
from trainability.introspect.run import observing, unwrap
from trainability.lbe.statistics import BatchStatistics, StatisticsReader
from trainability.moments import Neurons
from trainability.stack import cuda_graphs as graphs
from trainability.stack.assemble import assemble
from trainability.stack.collector import Collector
from trainability.stack.members import Turn, Way, taught

Timer = Callable[[Callable[[], object]], float]
"""Seconds that some work takes."""

_STREAMS = 8


class Passed(NamedTuple):
    """Outputs ``(E, B, ...)`` of a pass, built as a model's own, and moments of tapped layers, ``(E, readings, n)``."""

    outputs: Any
    readings: list[BatchStatistics]


class Stack(nn.Module):
    """E networks of one architecture that run at once.

    Parameters and buffers are those of the members, stacked: ``module.linear1.weight`` is ``(E, out, in)``. The models
    that were given become views of it, so that what is trained in the stack is trained in them, and ``models[2]`` is a
    plain network at any time. A stack of one is its model, unstacked.

    Members run in one of four ways, of which `prepare` takes the first that serves and `choose` the fastest:
    ``"direct"``, the stacked tensors going through a network whose every layer knows them; ``"vmap"``, mapped over by
    `torch.func.vmap` (convolutions become grouped ones); ``"loop"``, one after another; ``"streams"``, each on a stream
    of the device, so that small kernels of several members run side by side. Nothing of one member enters what another
    one computes.

    Args:
        models: networks of the same modules and shapes. They may differ in their weights, in the probability of their
            dropouts and in the slope of their leaky ReLUs.
        taps: where activations are read whose mean and variance per neuron a pass in training mode returns.
        neurons: what counts as a neuron (`trainability.batch_entropy`).

    Raises:
        UnsupportedModelError: the models differ otherwise; the message names the module.

    >>> from torch import nn
    >>> stack = Stack([nn.Sequential(nn.Linear(4, 3), nn.ReLU()) for _ in range(5)], taps=["1"])
    >>> passed = stack(torch.randn(5, 8, 4))
    >>> passed.outputs.shape, passed.readings[0].variance.shape
    (torch.Size([5, 8, 3]), torch.Size([5, 1, 3]))
    """

    def __init__(
        self, models: Sequence[nn.Module], *, taps: Sequence[str | Place] = (), neurons: Neurons = "position"
    ) -> None:
        super().__init__()
        if not isinstance(models, Sequence):
            raise ArgumentTypeError(f"models are a list of networks, not {models!r}", code="wrong-type")
        if not models:
            raise ArgumentError("a stack needs at least one model", code="empty")
        members = [unwrap(model) for model in models]
        if len({id(m) for m in members}) < len(members):
            raise ArgumentError(
                "the members of a stack must be models of their own, not one model several times", code="duplicate"
            )
        self.__dict__["models"] = members  # not submodules: their weights are views of this module's
        self.turn = Turn("alone" if len(members) == 1 else "vmap")
        self.turn.generators = [torch.Generator().manual_seed(number) for number in range(len(members))]
        self.module = members[0] if len(members) == 1 else assemble(members, self.turn)
        self._point_members()
        self._collector = Collector(neurons, self.turn)
        self._reader = StatisticsReader(neurons, None, owner=self.module)
        self._taps = Taps(self.module, taps, self._reader if len(members) == 1 else self._collector)
        self._places = tuple(taps)
        self._forward: Callable[..., Any] = self._pass
        self._streams: list[Any] = []

    models: list[nn.Module]

    def __len__(self) -> int:
        return len(self.models)

    def forward(self, x: Tensor) -> Passed:
        """Run every member on its own inputs, ``(E, B, ...)``."""
        self._check_inputs(x)
        return Passed(*self._forward(x))

    def predict(self, x: Tensor) -> Any:
        """Run every member on the same inputs ``(B, ...)`` in ``eval`` mode, without gradients: ``(E, B, ...)``."""
        self._check_tensor(x)
        self.module.eval()
        try:
            with torch.no_grad():
                if self.how == "direct":
                    return self.module(x.expand(len(self), *x.shape).clone())  # which it may change in place
                if self.how == "vmap":
                    return self._mapped(x, shared=True)[0]
                return _stacked([self._one(*state, x)[0] for state in self._states()])
        finally:
            self.module.train()

    @staticmethod
    def _check_tensor(x: object) -> None:
        if not isinstance(x, Tensor) or x.is_complex() or x.is_nested or x.layout != torch.strided:
            what = f"a tensor of {x.dtype} and {x.layout}" if isinstance(x, Tensor) else repr(x)
            raise ArgumentTypeError(f"a stack takes a dense tensor of real numbers, not {what}", code="wrong-type")

    def _check_inputs(self, x: Tensor) -> None:
        self._check_tensor(x)
        if x.dim() < 2 or len(x) != len(self):
            raise ArgumentError(
                f"a stack of {len(self)} takes inputs ({len(self)}, B, ...), not {tuple(x.shape)}", code="input-shape"
            )

    @property
    def how(self) -> Way:
        """The way in which the members run."""
        return self.turn.way

    @how.setter
    def how(self, way: Way) -> None:
        self.turn.way = way

    def prepare(self, x: Tensor) -> int:
        """Learn on inputs ``(E, B, ...)`` what a pass needs to know; return the bytes that it keeps for one member.

        These are the layers that overwrite what was tapped, and whether the members can run directly, which is believed
        only where the outputs are those of the mapped way. Nothing of the models is changed.
        """
        self._check_inputs(x)
        kept: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return t

        model = self.models[0]
        with observing(model), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.enable_grad():
            model.train()
            with Taps(model, self._places, self._collector), self._collector.learning():
                model(x[0])
        if self.how == "vmap" and not self._can_be_mapped(x):
            self.how = "loop"
        if self.how != "alone":
            self._find_what_draws(x)
        if self.how == "vmap" and all(taught(m, self.turn) for m in _leaves(self.module)) and self._direct_agrees(x):
            self.how = "direct"
        owned = {p.untyped_storage().data_ptr() for p in model.parameters() if not isinstance(p, DTensor)}
        return sum(size for pointer, size in kept.items() if pointer not in owned)

    def _can_be_mapped(self, x: Tensor) -> bool:
        with observing(self.module), torch.no_grad():
            self.module.train()
            try:
                self._pass(x)
            except UnsupportedModelError as error:
                if "random" not in error.problem:
                    raise
                return False
            except RuntimeError:  # control flow that depends on the data, or an operation without a rule
                return False
        return True

    def _direct_agrees(self, x: Tensor) -> bool:
        """Whether every layer returns directly what it returns mapped, and not just the last, which may be silent."""
        states = [generator.get_state() for generator in self.turn.generators]
        found: list[Tensor] = []

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> list[Tensor]:
            return [*tensors_in(_called(self.module, (parameters, buffers), own)), *found]

        def outputs_of_all(way: Way) -> list[Tensor]:
            found.clear()
            for generator, state in zip(self.turn.generators, states, strict=True):
                generator.set_state(state)
            self.how = way
            return [*tensors_in(self.module(x)), *found] if way == "direct" else vmap(one)(*self._state(), x)

        handles = [m.register_forward_hook(lambda _m, _i, out: found.append(out)) for m in _leaves(self.module)]
        try:
            with observing(self.module), torch.no_grad():
                self.module.train()
                pairs = list(zip(outputs_of_all("vmap"), outputs_of_all("direct"), strict=True))
            return all(_close(a, b) for a, b in pairs)
        except (RuntimeError, IndexError, ValueError, TypeError):  # a forward that counts dimensions
            return False
        finally:
            self.how = "vmap"
            for handle in handles:
                handle.remove()

    def choose(self, x: Tensor, timer: Timer | None = None) -> dict[Way, float]:
        """Take the fastest of mapping, looping and streams for inputs ``(E, B, ...)``; return the seconds of each.

        Only a network with convolutions is timed: batched matrix products are never slower than one after another, but
        a grouped convolution may be. ``timer`` says how long a pass takes (`trainability.stack.cuda_graphs.seconds`).
        """
        convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in self.module.modules())
        if self.how == "alone" or not convolutions:
            return {}
        seconds: dict[Way, float] = {}
        timer = timer or partial(graphs.seconds, device=x.device)
        each: list[Way] = ["vmap", "loop", "streams"] if x.is_cuda else ["vmap", "loop"]
        if self.how == "loop":  # it cannot be mapped
            each.remove("vmap")
        for way in each:
            self.how = way
            try:
                with self.rehearsing(x) as work:
                    seconds[way] = timer(work)
            except RuntimeError:  # an operation that cannot be mapped
                if way == "loop":
                    raise
        self.how = min(seconds, key=lambda way: seconds[way])
        return dict(seconds)

    @contextmanager
    def rehearsing(self, x: Tensor) -> Iterator[Callable[[], None]]:
        """Within it, the work that it yields is a forward and backward pass; gradients and buffers are left alone."""
        trained = [p for p in self.module.parameters() if p.requires_grad]

        def work() -> None:
            with torch.enable_grad():
                outputs, _ = self._forward(x)
                reached = [t for t in tensors_in(outputs) if t.requires_grad]
                total = torch.stack([t.float().square().mean() for t in reached]).sum()
                torch.autograd.grad(total, trained, allow_unused=True)

        with observing(self.module, guard=False):
            self.module.train()
            yield work

    @property
    def recordable(self) -> bool:
        """Whether random numbers come from generators that are set between steps, and not between the members."""
        return self.how not in ("loop", "streams") or not self.turn.by_functions

    def seed(self, generators: Sequence[torch.Generator], seeds: Sequence[int]) -> None:
        """Say from what the members draw in the next pass: a generator each, or torch's own, set to a seed for each."""
        self.turn.generators, self.turn.seeds = generators, seeds
        if self.how == "alone":
            torch.manual_seed(seeds[0])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the pass of all members with `torch.compile`."""
        self._forward = torch.compile(self._pass, *args, **kwargs)

    def eager(self) -> None:
        """Undo `compile`."""
        self._forward = self._pass

    @property
    def sharded(self) -> bool:
        """Whether each process keeps a part of the weights, so that every pass takes all processes."""
        return any(isinstance(p, DTensor) for p in self.module.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point parameter, and so of the inputs."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    def remove(self) -> None:
        """Take the taps off, which matters for a stack of one: its model is the user's."""
        self._taps.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stack":
        twin = Stack([copy.deepcopy(m, memo) for m in self.models], taps=self._places, neurons=self._reader.neurons)
        twin.how = self.how
        return twin

    def __getstate__(self) -> dict[str, Any]:
        raise ArgumentTypeError(
            "a stack cannot be pickled: its models are views of it; pickle stack.models, or state_dict()",
            code="not-picklable",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Stack":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._point_members()
        return self

    def _point_members(self) -> None:
        """Make the members' parameters and buffers views of the stacked ones."""
        self.owners: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        if len(self) == 1:
            return
        members = [dict(model.named_parameters()) for model in self.models]
        for name, stacked in self.module.named_parameters():
            owners = [parameters[name] for parameters in members]
            for owner, value in zip(owners, stacked.data.unbind(0), strict=True):
                owner.data = value
            self.owners.append((stacked, owners))
        for name, buffer in self.module.named_buffers():
            path, _, last = name.rpartition(".")
            for model, value in zip(self.models, buffer.unbind(0), strict=True):
                holder = model.get_submodule(path)
                if last in holder._buffers:
                    holder._buffers[last] = value

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for path, module in self.module.named_modules():  # each once, whatever names it has
            for own, found in ((module._parameters, parameters), (module._buffers, buffers)):
                found.update({f"{path}.{name}".lstrip("."): t for name, t in own.items() if t is not None})
        return parameters, buffers

    def _states(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Every member's parameters and buffers, with the noise set to draw for that member."""
        if self.how == "alone":
            yield self._state()
            return
        parameters, buffers = ({name: t.unbind(0) for name, t in part.items()} for part in self._state())
        for member in range(len(self)):
            self.turn.member = member
            if self.turn.seeds and self.turn.by_functions:
                torch.manual_seed(self.turn.seeds[member])  # as a plain loop would before each step
            yield {n: t[member] for n, t in parameters.items()}, {n: t[member] for n, t in buffers.items()}

    def _find_what_draws(self, x: Tensor) -> None:
        """Note whether a member that runs by itself draws from torch's own generators, though its dropouts do not."""
        way = self.how
        self.how, self.turn.by_functions = "loop", False
        try:
            with observing(self.module), torch.no_grad():
                self.module.train()
                before = _own_states(x.device)
                self._one(*next(self._states()), x[0])
                drawn = before != _own_states(x.device)
        finally:
            self.how = way
        self.turn.by_functions = drawn

    def _in_turn(self, x: Tensor) -> list[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]]:
        """Run every member by itself; on streams, all begin when what was launched before is done."""
        each = zip(self._states(), x, strict=True)
        if self.how == "loop":
            return [self._one(*state, one) for state, one in each]
        device = torch.get_device_module(x.device)
        if not self._streams:
            self._streams = [device.Stream() for _ in range(min(len(self), _STREAMS))]
        here, found = device.current_stream(), []
        for number, (state, one) in enumerate(each):
            stream = self._streams[number % _STREAMS]
            stream.wait_stream(here)
            with device.stream(stream):
                found.append(self._one(*state, one))
        for stream in self._streams:
            here.wait_stream(stream)
        return found

    def _pass(self, x: Tensor) -> tuple[Any, list[BatchStatistics]]:
        if self.how == "alone":
            outputs = map_tensors(lambda t: t.unsqueeze(0), _checked(self.module(x[0])))
            taken = [
                replace(b, mean=b.mean.unsqueeze(0), variance=b.variance.unsqueeze(0)) for b in self._reader.take()
            ]
            return outputs, taken
        if self.how == "direct":
            outputs = _checked(self.module(x))
            return outputs, self._collector.batches(self._collector.take())
        if self.how in ("loop", "streams"):
            each = self._in_turn(x)
            names = each[0][1]
            moments: dict[str, Any] = {
                n: tuple(torch.stack(m) for m in zip(*(r[n] for _, r in each), strict=True)) for n in names
            }
            return _stacked([o for o, _ in each]), self._collector.batches(moments)
        try:
            outputs, moments = self._mapped(x)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise UnsupportedModelError(
                "",
                "it draws random numbers by a function, which cannot be mapped over the members; use torch.nn.Dropout, "
                "or let them run one after another (members: loop)",
                code="not-stackable",
            ) from None
        return outputs, self._collector.batches(moments)

    def _mapped(self, x: Tensor, shared: bool = False) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        """Map over the members, each with its own inputs or all with shared ones."""
        built: list[Any] = []

        def one(*state_and_inputs: Any) -> tuple[list[Tensor], dict[str, tuple[Tensor, Tensor]]]:
            outputs, moments = self._one(*state_and_inputs)
            built.append(outputs)
            return list(tensors_in(outputs)), moments

        tensors, moments = vmap(one, in_dims=(0, 0, None if shared else 0))(*self._state(), x)
        return with_tensors(built[0], iter(tensors)), moments

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        """Run one member; the moments are those of its tapped layers."""
        if self.how == "alone":
            return _checked(self.module(x)), {}
        outputs = _checked(_called(self.module, (parameters, buffers), x))
        return outputs, self._collector.take()


def _called(module: nn.Module, state: tuple[dict[str, Tensor], dict[str, Tensor]], x: Tensor) -> Any:
    """What a module gives with other tensors; those that are tied are all named in the state."""
    return functional_call(module, state, (x,), tie_weights=False)


def _checked(outputs: Any) -> Any:
    if not isinstance(outputs, Tensor) and next(tensors_in(outputs), None) is None:
        raise UnsupportedModelError(
            "",
            f"it returns {type(outputs).__name__} without a tensor; return tensors, alone or in a tuple, dictionary or "
            "dataclass",
            code="outputs-not-a-tensor",
        )
    return outputs


def _stacked(outputs: Sequence[Any]) -> Any:
    """The outputs of all members, of the outputs of each."""
    return map_tensors(lambda *each: torch.stack(each), *outputs)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree as well as two ways of computing them do, measured by the largest entry."""
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


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if next(m.children(), None) is None)
