"""Several networks of one architecture as one module."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call, vmap

from trainability.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from trainability.introspect.hooks import Place, Taps, tensors_in
from trainability.introspect.outputs import map_tensors, with_tensors
from trainability.introspect.run import arguments, call, observing, unwrap
from trainability.introspect.snapshot import Values, unregistered_tensors
from trainability.lbe.statistics import BatchStatistics, StatisticsReader
from trainability.moments import Neurons
from trainability.stack.apart import joined, stack_alike
from trainability.stack.assemble import assemble
from trainability.stack.collector import Collector
from trainability.stack.inputs import Inputs, check_inputs, first_tensor, inputs_of, map_inputs
from trainability.stack.members import Turn, Way

_STREAMS = 8


class Passed(NamedTuple):
    """Outputs ``(E, B, ...)`` of a pass, built as a model's own, and moments of tapped layers, ``(E, readings, n)``."""

    outputs: Any
    readings: list[BatchStatistics]


class Stack(nn.Module):
    """E networks of one architecture that run at once.

    Parameters and buffers are those of the members, stacked: ``module.linear1.weight`` is ``(E, out, in)``. The models
    that were given become views of it, so that what is trained in the stack is trained in them, and ``models[2]`` is a
    plain network at any time. A stack of one is its model, unstacked, and runs any module that PyTorch runs.

    Inputs are a tensor, or a tuple, list or mapping of tensors, as each model takes them: ``model(x)``, ``model(*x)``,
    ``model(**x)``. A tensor may be of any type but complex.

    Members run in one of four ways, of which `trainability.stack.ways` finds one that serves, or the fastest:
    ``"direct"``, the stacked tensors going through a network whose every layer knows them; ``"vmap"``, mapped over by
    `torch.func.vmap` (convolutions become grouped ones); ``"loop"``, one after another; ``"streams"``, each on a stream
    of the device, so that small kernels of several members run side by side. Nothing of one member enters what another
    one computes. Those that run one after another do so in one module, which takes each one's tensors in turn; where
    that comes to something else, as for a model that keeps state in attributes, they are ``apart``, each running as
    the module that was given. With ``channels_last`` the maps lie in memory with their channels last, as some
    convolutions are faster; weights stay as they are.

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
    >>> attention = Stack([nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(5)])
    >>> attention((torch.randn(5, 8, 3, 4),) * 3).outputs[0].shape
    torch.Size([5, 8, 3, 4])
    """

    def __init__(
        self, models: Sequence[nn.Module], *, taps: Sequence[str | Place] = (), neurons: Neurons = "position"
    ) -> None:
        super().__init__()
        if not isinstance(models, Sequence):
            raise ArgumentTypeError(f"models must be a list of networks, not {models!r}", code="wrong-type")
        if not models:
            raise ArgumentError("a stack needs at least one model", code="empty")
        members = [unwrap(model, hooked=len(models) > 1 or bool(taps)) for model in models]
        if len({id(m) for m in members}) < len(members):
            raise ArgumentError(
                "the members of a stack must be models of their own, not one model several times", code="duplicate"
            )
        self.__dict__["models"] = members  # not submodules: their weights are views of this module's
        self.channels_last = False
        self.writes_inputs = False  # whether a model changes them in place, for which each member needs its own
        self.apart = False
        self._views: list[tuple[str, list[Tensor]]] = []  # of the stacked buffers, by name
        self.turn = Turn("alone" if len(members) == 1 else "vmap")
        self.turn.generators = [torch.Generator().manual_seed(number) for number in range(len(members))]
        self.module = members[0] if len(members) == 1 else assemble(members, self.turn)
        self._point_members()
        self.collector = Collector(neurons, self.turn)
        self._reader = StatisticsReader(neurons, None, owner=self.module)
        self.places = tuple(taps)
        self._taps: list[Taps] = []
        self._put_taps()
        self._forward: Callable[..., Any] = self._pass
        self._streams: list[Any] = []

    models: list[nn.Module]

    def __len__(self) -> int:
        return len(self.models)

    def forward(self, inputs: Inputs) -> Passed:
        """Run every member on its own inputs, ``(E, B, ...)``."""
        self.check_inputs(inputs)
        return Passed(*self._forward(inputs))

    def predict(self, inputs: Inputs) -> Any:
        """Run every member on the same inputs ``(B, ...)`` in ``eval`` mode, without gradients: ``(E, B, ...)``."""
        check_inputs(inputs)
        inputs = self._laid_out(inputs)
        self.module.eval()
        try:
            with torch.no_grad():
                if self.way == "direct":
                    return self.module(self._for_all(inputs))
                if self.way == "vmap":
                    return self._mapped(inputs, shared=True)[0]
                if self.apart:
                    return self._run_apart(self._for_all(inputs))[0]
                each = [self.one(*state, map_inputs(Tensor.clone, inputs))[0] for state in self.states()]
                return map_tensors(stack_alike, *each)
        finally:
            self.module.train()

    def _for_all(self, inputs: Inputs) -> Any:
        """The same inputs for every member, each with a copy, which it may change in place."""
        return map_inputs(lambda t: t.expand(len(self), *t.shape).clone(), inputs)

    def check_inputs(self, inputs: Inputs) -> None:
        """Raise ArgumentError or ArgumentTypeError for inputs that are not tensors ``(E, B, ...)``."""
        check_inputs(inputs, len(self))

    @property
    def way(self) -> Way:
        """The way in which the members run."""
        return self.turn.way

    @way.setter
    def way(self, way: Way) -> None:
        if self.apart and way != "loop":
            raise UnsupportedModelError(
                "",
                "its members can only run one after another, as they keep state of their own; take members: loop",
                code="not-stackable",
            )
        self.turn.way = way

    @property
    def recordable(self) -> bool:
        """True where random numbers come from generators that are set between steps, and not between the members."""
        return not self.apart and (self.way not in ("loop", "streams") or not self.turn.by_functions)

    def seed(self, generators: Sequence[torch.Generator], seeds: Sequence[int]) -> None:
        """Say from what the members draw in the next pass: a generator each, or torch's own, set to a seed for each."""
        self.turn.generators, self.turn.seeds = generators, seeds
        if self.way == "alone":
            torch.manual_seed(seeds[0])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the pass of all members with `torch.compile`; those that are apart stay as they are."""
        if not self.apart:
            self._forward = torch.compile(self._pass, *args, **kwargs)

    def eager(self) -> None:
        """Undo `compile`."""
        self._forward = self._pass

    @property
    def sharded(self) -> bool:
        """True where each process keeps a part of the weights, so that every pass takes all processes."""
        return any(isinstance(p, DTensor) for p in self.module.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point parameter, and so of the inputs."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Within it, passes leave no trace on what runs, but on parameters that they change in place."""
        views, apart = self._views, self.models if self.apart else []
        values = Values([t for model in apart for t in unregistered_tensors(model)])
        try:
            with ExitStack() as all_:
                for model in [*apart, self.module]:
                    all_.enter_context(observing(model, guard=False))
                yield
        finally:
            values.restore()
            self._views = views

    def run_apart(self) -> None:
        """Let members run one after another from now on, each as the module that was given."""
        self.way, self.apart = "loop", True
        for model in self.models:
            model.train(self.module.training)
        self.remove()
        self._put_taps()

    def _put_taps(self) -> None:
        tapped = self.models if self.apart else [self.module]
        reader = self._reader if len(self) == 1 else self.collector
        if self.places:  # a scripted model takes no hooks
            self._taps = [Taps(model, self.places, reader) for model in tapped]

    def remove(self) -> None:
        """Take the taps off, which matters where it is the user's own models that run."""
        for taps in self._taps:
            taps.remove()
        self._taps = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stack":
        tapped = bool(self._taps)
        self.remove()  # which the copies would have too
        copies = [copy.deepcopy(model, memo) for model in self.models]
        if tapped:
            self._put_taps()
        twin = Stack(copies, taps=self.places, neurons=self._reader.neurons)
        twin.channels_last, twin.writes_inputs = self.channels_last, self.writes_inputs
        if self.apart:
            twin.run_apart()
        else:
            twin.way = self.way
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
        self._views = []
        if len(self) == 1:
            return
        members = [dict(model.named_parameters()) for model in self.models]
        for name, stacked in self.module.named_parameters():
            owners = [parameters[name] for parameters in members]
            for owner, value in zip(owners, stacked.data.unbind(0), strict=True):
                owner.data = value
            self.owners.append((stacked, owners))
        for name, buffer in self.module.named_buffers(remove_duplicate=False):
            self._point_buffers(name, buffer)

    def _point_buffers(self, name: str, stacked: Tensor) -> None:
        views = list(stacked.unbind(0))
        for model, view in zip(self.models, views, strict=True):
            own = _buffers_at(model, name)
            if name.rpartition(".")[2] in own:
                own[name.rpartition(".")[2]] = view
        self._views.append((name, views))

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the stacked parameters and buffers by name."""
        parameters: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for path, module in self.module.named_modules():  # each once, whatever names it has
            for own, found in ((module._parameters, parameters), (module._buffers, buffers)):
                found.update({f"{path}.{name}".lstrip("."): t for name, t in own.items() if t is not None})
        return parameters, buffers

    def states(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Every member's parameters and buffers, with the noise set to draw for that member."""
        if self.way == "alone":
            yield self.tensors()
            return
        parameters, buffers = ({name: t.unbind(0) for name, t in part.items()} for part in self.tensors())
        for member in range(len(self)):
            self._take_turn(member)
            yield {n: t[member] for n, t in parameters.items()}, {n: t[member] for n, t in buffers.items()}

    def _take_turn(self, member: int) -> None:
        self.turn.member = member
        if self.turn.seeds and self.turn.by_functions:
            torch.manual_seed(self.turn.seeds[member])  # as a plain loop would before each step

    def _in_turn(self, inputs: Inputs) -> list[tuple[Any, dict[str, tuple[Tensor, Tensor]]]]:
        """Run every member by itself; on streams, all begin when what was launched before is done."""
        own = inputs_of(inputs, len(self))
        if self.writes_inputs:
            own = [map_inputs(Tensor.clone, one) for one in own]
        each = zip(self.states(), own, strict=True)
        if self.way == "loop":
            return [self.one(*state, one) for state, one in each]
        device = torch.get_device_module(first_tensor(inputs).device)
        if not self._streams:
            self._streams = [device.Stream() for _ in range(min(len(self), _STREAMS))]
        here, found = device.current_stream(), []
        for number, (state, one) in enumerate(each):
            stream = self._streams[number % _STREAMS]
            stream.wait_stream(here)
            with device.stream(stream):
                found.append(self.one(*state, one))
        for stream in self._streams:
            here.wait_stream(stream)
        return found

    def _run_apart(self, inputs: Inputs) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        """Run every member as its own module; the gradients go to the stacked parameters."""
        built: list[Any] = []
        readings: list[str] = []

        def run(member: int, tensors: Sequence[Tensor]) -> list[Tensor]:
            self._take_turn(member)
            model = self.models[member]
            if model.training != self.module.training:
                model.train(self.module.training)
            own = [t.clone() for t in tensors] if self.writes_inputs else tensors
            outputs = checked(call(model, with_tensors(inputs, iter(own))))
            moments = self.collector.take()
            built.append(outputs)
            readings[:] = moments
            return [*tensors_in(outputs), *(m for pair in moments.values() for m in pair)]

        found = iter(joined(run, self.owners, list(tensors_in(inputs)), len(self)))
        self._take_back_buffers()
        outputs = with_tensors(built[0], found)
        return outputs, {name: (next(found), next(found)) for name in readings}

    def _take_back_buffers(self) -> None:
        """Stack those buffers again in whose place a forward has put others."""
        views, self._views = self._views, []
        for name, before in views:
            last, like = name.rpartition(".")[2], before[0]
            now = [_buffers_at(model, name).get(last) for model in self.models]
            if all(a is b for a, b in zip(now, before, strict=True)):
                self._views.append((name, before))
                continue
            alike = [t.detach() for t in now if t is not None and (t.shape, t.dtype) == (like.shape, like.dtype)]
            if len(alike) == len(self):
                _buffers_at(self.module, name)[last] = stacked = torch.stack(alike)
                self._point_buffers(name, stacked)

    def _laid_out(self, inputs: Inputs) -> Any:
        """The same inputs as a tensor, a tuple or a dictionary; a tensor of maps in the chosen order in memory."""
        if not isinstance(inputs, Tensor):
            return map_inputs(lambda t: t, inputs)
        if not self.channels_last:
            return inputs
        return inputs.movedim(-3, -1).contiguous().movedim(-1, -3)

    def _pass(self, inputs: Inputs) -> tuple[Any, list[BatchStatistics]]:
        inputs = self._laid_out(inputs)
        if self.way == "alone":
            outputs = map_tensors(lambda t: t.unsqueeze(0), self.one({}, {}, inputs_of(inputs, 1)[0])[0])
            taken = [
                replace(b, mean=b.mean.unsqueeze(0), variance=b.variance.unsqueeze(0)) for b in self._reader.take()
            ]
            return outputs, taken
        if self.way == "direct":
            outputs = checked(self.module(inputs))
            return outputs, self.collector.batches(self.collector.take())
        if self.apart:
            outputs, moments = self._run_apart(inputs)
            return outputs, self.collector.batches(moments)
        if self.way in ("loop", "streams"):
            each = self._in_turn(inputs)
            names = each[0][1]
            stacked: dict[str, Any] = {
                n: tuple(torch.stack(m) for m in zip(*(r[n] for _, r in each), strict=True)) for n in names
            }
            return map_tensors(stack_alike, *(o for o, _ in each)), self.collector.batches(stacked)
        try:
            outputs, moments = self._mapped(inputs)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise UnsupportedModelError(
                "",
                "its forward calls a function that draws random numbers, which cannot be mapped over the members; use "
                "torch.nn.Dropout, or let them run one after another (members: loop)",
                code="draws-by-function",
            ) from None
        return outputs, self.collector.batches(moments)

    def _mapped(self, inputs: Inputs, shared: bool = False) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        """Map over the members, each with its own inputs or all with shared ones."""
        built: list[Any] = []

        def one(*state_and_inputs: Any) -> tuple[list[Tensor], dict[str, tuple[Tensor, Tensor]]]:
            outputs, moments = self.one(*state_and_inputs)
            built.append(outputs)
            return list(tensors_in(outputs)), moments

        tensors, moments = vmap(one, in_dims=(0, 0, None if shared else 0))(*self.tensors(), inputs)
        return with_tensors(built[0], iter(tensors)), moments

    def one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Inputs
    ) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
        """Run one member; the moments are those of its tapped layers."""
        if self.way == "alone":
            return checked(call(self.module, inputs)), {}
        outputs = checked(called(self.module, (parameters, buffers), inputs))
        return outputs, self.collector.take()


def called(module: nn.Module, state: tuple[dict[str, Tensor], dict[str, Tensor]], inputs: Inputs) -> Any:
    """Call a module with other tensors; those that are tied are all named in the state."""
    return functional_call(module, state, *arguments(inputs), tie_weights=False)


def checked(outputs: Any) -> Any:
    """Return the outputs of a model, in which there must be a tensor."""
    if not isinstance(outputs, Tensor) and next(tensors_in(outputs), None) is None:
        raise UnsupportedModelError(
            "",
            f"it returns {type(outputs).__name__} without a tensor; return tensors, alone or in a tuple, dictionary or "
            "dataclass",
            code="outputs-not-a-tensor",
        )
    return outputs


def _buffers_at(model: nn.Module, name: str) -> dict[str, Any]:
    """The buffers of the module that has one of this name."""
    return model.get_submodule(name.rpartition(".")[0])._buffers
