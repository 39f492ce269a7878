"""Several networks of one architecture as one module."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from trainability.errors import UnsupportedModelError
from trainability.observe import observing, unwrap
from trainability.taps import Taps, reading_name
from trainability.training.members import Noise, is_drawing, stand_in

How = Literal["alone", "vmap", "loop"]


class Passed(NamedTuple):
    """What a pass returned: outputs ``(E, B, ...)`` and the tapped activations, each ``(E, B, ...)``."""

    outputs: Tensor
    readings: dict[str, Tensor]


class Stack(nn.Module):
    """E networks of one architecture that run at once.

    Parameters and buffers are those of the members, stacked: ``module.linear1.weight`` is ``(E, out, in)``. The models
    that were given become views of it, so that what is trained in the stack is trained in them, and ``models[2]`` is a
    plain network at any time. A stack of one is its model, unstacked.

    Members run mapped over (`torch.func.vmap`: matrix products become batched, convolutions grouped), or one after
    another. Nothing of one member enters what another one computes.

    Args:
        models: networks of the same modules and shapes. They may differ in their weights, in the probability of their
            dropouts and in the slope of their leaky ReLUs.
        taps: paths of the layers whose activations a pass returns.

    Raises:
        UnsupportedModelError: the models differ otherwise, naming the module; or one has random numbers in it that
            cannot be drawn for each member.

    >>> from torch import nn
    >>> stack = Stack([nn.Sequential(nn.Linear(4, 3), nn.ReLU()) for _ in range(5)], taps=["1"])
    >>> passed = stack(torch.randn(5, 8, 4))
    >>> passed.outputs.shape, passed.readings["1"].shape
    (torch.Size([5, 8, 3]), torch.Size([5, 8, 3]))
    """

    def __init__(self, models: Sequence[nn.Module], *, taps: Sequence[str] = ()) -> None:
        super().__init__()
        if not models:
            raise ValueError("a stack needs at least one model")
        members = [unwrap(model) for model in models]
        if len({id(m) for m in members}) < len(members):
            raise ValueError("the members of a stack must be models of their own, not one model several times")
        self.__dict__["models"] = members  # not submodules: their weights are views of this module's
        self.noise = Noise()
        self.how: How = "alone" if len(members) == 1 else "vmap"
        self.module = members[0] if len(members) == 1 else _stacked(members, self.noise)
        self._point_members()
        self._collector = _Collector()
        self._taps = Taps(self.module, taps, self._collector)
        self._paths = tuple(taps)
        self._forward: Callable[..., Any] = self._pass

    models: list[nn.Module]

    def __len__(self) -> int:
        return len(self.models)

    def forward(self, x: Tensor) -> Passed:
        """Run every member on its own inputs, ``(E, B, ...)``."""
        return Passed(*self._forward(x))

    def predict(self, x: Tensor) -> Tensor:
        """Run every member on the same inputs ``(B, ...)`` without gradients and return ``(E, B, ...)``."""
        with torch.no_grad():
            if self.how == "vmap":
                mapped: Tensor = vmap(self._one, in_dims=(0, 0, None))(*self._state(), x)[0]
                return mapped
            return torch.stack([self._one(*state, x)[0] for state in self._states()])

    def prepare(self, x: Tensor) -> int:
        """Learn on inputs of one member which layers overwrite what was tapped; return the bytes a pass keeps for it.

        Nothing of the model is changed.
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
                model(x)
        owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in kept.items() if pointer not in owned)

    def choose(self, x: Tensor, repeats: int = 3) -> dict[How, float]:
        """Take the faster of mapping and looping for these inputs ``(E, B, ...)``; return the seconds of each.

        Only a network with convolutions is timed: batched matrix products are never slower than one after another, but
        a grouped convolution may be.
        """
        convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in self.module.modules())
        if self.how == "alone" or not convolutions:
            return {}
        seconds: dict[How, float] = {}
        ways: tuple[How, How] = ("vmap", "loop")
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
            for generator, seed in zip(self.noise.generators, range(len(self)), strict=False):
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

    def member_parameters(self, member: int) -> list[nn.Parameter]:
        """Parameters of one member; their gradients are set by `hand_gradients`."""
        return list(self.models[member].parameters())

    def hand_gradients(self) -> None:
        """Hand the gradients of the stacked parameters to the members' parameters, as views."""
        if self.how == "alone":
            return
        for stacked, owners in self._owners:
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
        self._owners: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        if len(self) == 1:
            return
        members = [dict(model.named_parameters()) for model in self.models]
        for name, stacked in self.module.named_parameters():
            owners = [parameters[name] for parameters in members]
            for owner, value in zip(owners, stacked.data.unbind(0), strict=True):
                owner.data = value
            self._owners.append((stacked, owners))
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
        try:
            for member in range(len(self)):
                self.noise.alone = member
                yield {n: t[member] for n, t in parameters.items()}, {n: t[member] for n, t in buffers.items()}
        finally:
            self.noise.alone = None

    def _pass(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.how == "alone":
            outputs, readings = self._one(*self._state(), x[0])
            return outputs.unsqueeze(0), {name: a.unsqueeze(0) for name, a in readings.items()}
        if self.how == "loop":
            each = [self._one(*state, one) for state, one in zip(self._states(), x, strict=True)]
            names = each[0][1]
            return torch.stack([o for o, _ in each]), {n: torch.stack([r[n] for _, r in each]) for n in names}
        try:
            mapped: tuple[Tensor, dict[str, Tensor]] = vmap(self._one)(*self._state(), x)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise UnsupportedModelError(
                "",
                "it draws random numbers by a function, which a stack cannot do for each member; use torch.nn.Dropout, "
                "or train it in a stack of one",
            ) from None
        return mapped

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        alone = self.how == "alone"
        outputs = self.module(x) if alone else functional_call(self.module, (parameters, buffers), (x,))
        return outputs, self._collector.take()


class _Collector:
    """A reader of taps that keeps the activations of one pass, as copies where the model overwrites them later."""

    def __init__(self) -> None:
        self.overwritten: set[str] = set()
        self.unusable: dict[str, str] = {}
        self._readings: dict[str, Tensor] = {}
        self._versions: list[tuple[str, Tensor, int]] | None = None

    def begin(self, model: nn.Module) -> None:
        """Forget an earlier pass."""
        self._readings.clear()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Keep one activation."""
        if activation is None or activation.numel() == 0:
            self.unusable[path] = "its output holds no floating-point tensor with values"
            return
        name = reading_name(path, call)
        self._readings[name] = activation.clone() if path in self.overwritten else activation
        if self._versions is not None:
            self._versions.append((path, activation, activation._version))

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Nothing is kept of a recomputation."""

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Around a pass that is not mapped: note which activations are overwritten after they were read."""
        versions: list[tuple[str, Tensor, int]] = []
        self._versions = versions
        yield
        self._versions = None
        self._readings.clear()
        self.overwritten |= {path for path, activation, version in versions if activation._version != version}

    def take(self) -> dict[str, Tensor]:
        """Hand over the readings."""
        readings = dict(self._readings)
        self._readings.clear()
        return readings


def _stacked(models: list[nn.Module], noise: Noise) -> nn.Module:
    """A copy of the first model with the parameters and buffers of all, stacked, and with stand-ins where needed."""
    _check_alike(models)
    state = {name: [dict(m.named_parameters())[name] for m in models] for name, _ in models[0].named_parameters()}
    module = copy.deepcopy(models[0])
    like = next(iter(models[0].parameters()), torch.empty(0))
    for path, own in models[0].named_modules(remove_duplicate=False):
        if next(own.children(), None) is not None:
            continue
        if is_drawing(own):
            raise UnsupportedModelError(
                path, f"{type(own).__name__} draws random numbers; a stack knows nn.Dropout only"
            )
        substitute = stand_in(path, [m.get_submodule(path) for m in models], noise, like)
        if substitute is not None:
            substitute.train(own.training)
            if not path:
                return substitute
            module.set_submodule(path, substitute)
    buffers = {name: [dict(m.named_buffers())[name] for m in models] for name, _ in models[0].named_buffers()}
    copies: dict[int, nn.Parameter | Tensor] = {}
    originals = {id(p): name for name, p in module.named_parameters()} | {id(b): n for n, b in module.named_buffers()}
    with torch.no_grad():
        for holder in module.modules():
            for name, parameter in list(holder._parameters.items()):
                if parameter is not None:
                    if id(parameter) not in copies:
                        values = state[originals[id(parameter)]]
                        copies[id(parameter)] = nn.Parameter(torch.stack([v.detach() for v in values]))
                        copies[id(parameter)].requires_grad_(parameter.requires_grad)
                    holder._parameters[name] = copies[id(parameter)]  # type: ignore[assignment]
            for name, buffer in list(holder._buffers.items()):
                if buffer is not None and originals[id(buffer)] in buffers:
                    if id(buffer) not in copies:
                        copies[id(buffer)] = torch.stack(buffers[originals[id(buffer)]])
                    holder._buffers[name] = copies[id(buffer)]
    return module


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
