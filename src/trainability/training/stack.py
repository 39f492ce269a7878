"""Several networks of one architecture as one module."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from trainability.errors import UnsupportedModelError
from trainability.moments import MappedMoments, Moments, Neurons, StackMoments, samples, stack_samples
from trainability.observe import observing, unwrap
from trainability.readings import Batch, Reader
from trainability.taps import Taps, reading_name
from trainability.training.members import Turn, Way, is_drawing, stand_in, taught


class Passed(NamedTuple):
    """What a pass returned: outputs ``(E, B, ...)`` and the moments of the tapped layers, ``(E, readings, n)``."""

    outputs: Tensor
    readings: list[Batch]


class Stack(nn.Module):
    """E networks of one architecture that run at once.

    Parameters and buffers are those of the members, stacked: ``module.linear1.weight`` is ``(E, out, in)``. The models
    that were given become views of it, so that what is trained in the stack is trained in them, and ``models[2]`` is a
    plain network at any time. A stack of one is its model, unstacked.

    Members run in one of three ways, of which `prepare` takes the first that serves and `choose` the fastest:
    ``"direct"``, the stacked tensors going through a network whose every layer knows them; ``"vmap"``, mapped over by
    `torch.func.vmap` (convolutions become grouped ones); ``"loop"``, one after another. Nothing of one member enters
    what another one computes.

    Args:
        models: networks of the same modules and shapes. They may differ in their weights, in the probability of their
            dropouts and in the slope of their leaky ReLUs.
        taps: paths of the layers whose mean and variance per neuron a pass in training mode returns.
        neurons: what counts as a neuron (`trainability.batch_entropy`).

    Raises:
        UnsupportedModelError: the models differ otherwise, naming the module; or one has random numbers in it that
            cannot be drawn for each member.

    >>> from torch import nn
    >>> stack = Stack([nn.Sequential(nn.Linear(4, 3), nn.ReLU()) for _ in range(5)], taps=["1"])
    >>> passed = stack(torch.randn(5, 8, 4))
    >>> passed.outputs.shape, passed.readings[0].variance.shape
    (torch.Size([5, 8, 3]), torch.Size([5, 1, 3]))
    """

    def __init__(self, models: Sequence[nn.Module], *, taps: Sequence[str] = (), neurons: Neurons = "position") -> None:
        super().__init__()
        if not models:
            raise ValueError("a stack needs at least one model")
        members = [unwrap(model) for model in models]
        if len({id(m) for m in members}) < len(members):
            raise ValueError("the members of a stack must be models of their own, not one model several times")
        self.__dict__["models"] = members  # not submodules: their weights are views of this module's
        self.turn = Turn("alone" if len(members) == 1 else "vmap")
        self.module = members[0] if len(members) == 1 else _stacked(members, self.turn)
        self._point_members()
        self._collector = _Collector(neurons, self.turn)
        self._reader = Reader(neurons, None)
        self._taps = Taps(self.module, taps, self._reader if len(members) == 1 else self._collector)
        self._paths = tuple(taps)
        self._forward: Callable[..., Any] = self._pass

    models: list[nn.Module]

    def __len__(self) -> int:
        return len(self.models)

    def forward(self, x: Tensor) -> Passed:
        """Run every member on its own inputs, ``(E, B, ...)``."""
        return Passed(*self._forward(x))

    def predict(self, x: Tensor) -> Tensor:
        """Run every member on the same inputs ``(B, ...)`` in ``eval`` mode, without gradients: ``(E, B, ...)``."""
        self.module.eval()
        try:
            with torch.no_grad():
                if self.how == "direct":
                    every: Tensor = self.module(x.expand(len(self), *x.shape))
                    return every
                if self.how == "vmap":
                    mapped: Tensor = vmap(self._one, in_dims=(0, 0, None))(*self._state(), x)[0]
                    return mapped
                return torch.stack([self._one(*state, x)[0] for state in self._states()])
        finally:
            self.module.train()

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
        kept: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return t

        model = self.models[0]
        with observing(model), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.enable_grad():
            model.train()
            with Taps(model, self._paths, self._collector), self._collector.learning():
                model(x[0])
        if self.how == "vmap" and all(taught(m, self.turn) for m in _leaves(self.module)) and self._direct_agrees(x):
            self.how = "direct"
        owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in kept.items() if pointer not in owned)

    def _direct_agrees(self, x: Tensor) -> bool:
        with observing(self.module), torch.no_grad():
            self.module.eval()
            mapped = vmap(self._one)(*self._state(), x)[0]
            self.how = "direct"
            try:
                direct = self.module(x)
            except (RuntimeError, IndexError, ValueError):  # a forward that counts dimensions
                return False
            finally:
                self.how = "vmap"
        return direct.shape == mapped.shape and torch.allclose(direct, mapped, rtol=1e-3, atol=1e-5, equal_nan=True)

    def choose(self, x: Tensor, repeats: int = 3) -> dict[Way, float]:
        """Take the faster of mapping and looping for these inputs ``(E, B, ...)``; return the seconds of each.

        Only a network with convolutions is timed: batched matrix products are never slower than one after another, but
        a grouped convolution may be.
        """
        convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in self.module.modules())
        if self.how == "alone" or not convolutions:
            return {}
        seconds: dict[Way, float] = {}
        ways: tuple[Way, Way] = ("vmap", "loop")
        for way in ways:
            self.how = way
            try:
                seconds[way] = median(self.seconds(x) for _ in range(repeats + 1))
            except RuntimeError:  # an operation that cannot be mapped
                if way == "loop":
                    raise
        self.how = min(seconds, key=lambda way: seconds[way])
        return dict(seconds)

    def seconds(self, x: Tensor) -> float:
        """Time of one forward and backward pass that leaves gradients and buffers as they were."""
        with observing(self.module), torch.enable_grad():
            self.module.train()
            for generator, seed in zip(self.turn.generators, range(len(self)), strict=False):
                generator.manual_seed(seed)
            begin = time.perf_counter()
            outputs, _ = self._forward(x)
            torch.autograd.grad(outputs.float().square().mean(), list(self.module.parameters()), allow_unused=True)
            if outputs.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - begin

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the pass of all members with `torch.compile`."""
        self._forward = torch.compile(self._pass, *args, **kwargs)

    def eager(self) -> None:
        """Undo `compile`."""
        self._forward = self._pass

    @property
    def frozen(self) -> bool:
        """Whether some parameter is not trained."""
        return not all(p.requires_grad for p in self.module.parameters())

    def hand_gradients(self) -> None:
        """Hand the gradients of the stacked parameters to the members' parameters, as views."""
        if self.how == "alone":
            return
        for stacked, owners in self.owners:
            if stacked.grad is None:
                for owner in owners:
                    owner.grad = None
            else:
                for owner, gradient in zip(owners, stacked.grad.unbind(0), strict=True):
                    owner.grad = gradient

    def zero_gradients(self) -> None:
        """Drop the gradients of all members."""
        for parameter in self.module.parameters():
            parameter.grad = None

    def remove(self) -> None:
        """Take the taps off, which matters for a stack of one: its model is the user's."""
        self._taps.remove()

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
        return dict(self.module.named_parameters()), dict(self.module.named_buffers())

    def _states(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Every member's parameters and buffers, with the noise set to draw for that member."""
        if self.how == "alone":
            yield self._state()
            return
        parameters, buffers = ({name: t.unbind(0) for name, t in part.items()} for part in self._state())
        for member in range(len(self)):
            self.turn.member = member
            yield {n: t[member] for n, t in parameters.items()}, {n: t[member] for n, t in buffers.items()}

    def _pass(self, x: Tensor) -> tuple[Tensor, list[Batch]]:
        if self.how == "alone":
            outputs = self.module(x[0]).unsqueeze(0)
            taken = [
                replace(b, mean=b.mean.unsqueeze(0), variance=b.variance.unsqueeze(0)) for b in self._reader.take()
            ]
            return outputs, taken
        if self.how == "direct":
            outputs = self.module(x)
            return outputs, self._collector.batches(self._collector.take())
        if self.how == "loop":
            each = [self._one(*state, one) for state, one in zip(self._states(), x, strict=True)]
            names = each[0][1]
            moments: dict[str, Any] = {
                n: tuple(torch.stack(m) for m in zip(*(r[n] for _, r in each), strict=True)) for n in names
            }
            return torch.stack([o for o, _ in each]), self._collector.batches(moments)
        try:
            outputs, moments = vmap(self._one)(*self._state(), x)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise UnsupportedModelError(
                "",
                "it draws random numbers by a function, which a stack cannot do for each member; use torch.nn.Dropout, "
                "or train it in a stack of one",
            ) from None
        return outputs, self._collector.batches(moments)

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Run one member; the moments are those of its tapped layers."""
        if self.how == "alone":
            return self.module(x), {}
        return functional_call(self.module, (parameters, buffers), (x,)), self._collector.take()


class _Collector:
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
            self._versions.append((path, activation, activation._version))
            return
        name = reading_name(path, call)
        x = activation.clone() if path in self._overwritten else activation
        if self.turn.way == "direct":
            moments = StackMoments.apply(stack_samples(x, self.neurons))  # type: ignore[no-untyped-call]
        elif self.turn.way == "vmap":
            moments = MappedMoments.apply(x, self.neurons)  # type: ignore[no-untyped-call]
        else:
            moments = Moments.apply(samples(x, self.neurons))  # type: ignore[no-untyped-call]
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
        self._overwritten |= {path for path, activation, version in versions if activation._version != version}

    def take(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Hand over the moments."""
        moments = dict(self._moments)
        self._moments.clear()
        return moments

    def batches(self, moments: dict[str, Any]) -> list[Batch]:
        """Turn moments ``(E, n)`` into what the LBE term takes."""
        return [
            Batch((name.partition("#")[0],), (name,), mean.unsqueeze(1), variance.unsqueeze(1), self._counts[name])
            for name, (mean, variance) in moments.items()
        ]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if next(m.children(), None) is None)


def _stacked(models: list[nn.Module], turn: Turn) -> nn.Module:
    """A copy of the first model with the parameters and buffers of all, stacked, and with stand-ins where needed."""
    _check_alike(models)
    module = copy.deepcopy(models[0])
    _stack_tensors(module, models)
    like = next(iter(models[0].parameters()), torch.empty(0))
    for path, own in models[0].named_modules(remove_duplicate=False):
        if is_drawing(own):
            raise UnsupportedModelError(
                path, f"{type(own).__name__} draws random numbers; a stack knows nn.Dropout only"
            )
        if next(own.children(), None) is not None:
            continue
        substitute = stand_in(path, [m.get_submodule(path) for m in models], turn, like)
        if substitute is not None:
            substitute.train(own.training)
            if not path:
                return substitute
            module.set_submodule(path, substitute)
    return module


def _stack_tensors(module: nn.Module, models: list[nn.Module]) -> None:
    """Put the stacked parameters and buffers of the models into a copy of one of them; what was shared stays shared."""
    parameters = [dict(m.named_parameters()) for m in models]
    buffers = [dict(m.named_buffers()) for m in models]
    stacked: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        values = torch.stack([own[name].detach() for own in parameters])
        stacked[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        stacked[id(buffer)] = torch.stack([own[name] for own in buffers])
    for holder in module.modules():
        for tensors in (holder._parameters, holder._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = stacked[id(tensor)]


def _check_alike(models: list[nn.Module]) -> None:
    """Raise UnsupportedModelError where a model is not of the first one's architecture."""
    first = dict(models[0].named_modules())
    shapes = {n: (t.shape, t.dtype) for n, t in (*models[0].named_parameters(), *models[0].named_buffers())}
    for number, model in enumerate(models[1:], 1):
        modules = dict(model.named_modules())
        for path, own in first.items():
            other = modules.get(path)
            if type(other) is not type(own):
                what = "nothing" if other is None else type(other).__name__
                raise UnsupportedModelError(path, f"member 0 has {type(own).__name__} here and member {number} {what}")
        if extra := sorted(modules.keys() - first.keys()):
            raise UnsupportedModelError(extra[0], f"member {number} has it and member 0 has not")
        found = {n: (t.shape, t.dtype) for n, t in (*model.named_parameters(), *model.named_buffers())}
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                path = name.rpartition(".")[0]
                raise UnsupportedModelError(
                    path, f"{name} is {_say(shapes, name)} in member 0, {_say(found, name)} in {number}"
                )


def _say(shapes: dict[str, Any], name: str) -> str:
    return "absent" if name not in shapes else f"{tuple(shapes[name][0])} {shapes[name][1]}"
