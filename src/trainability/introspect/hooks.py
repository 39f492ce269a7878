"""Reading activations as they pass, and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainability.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from trainability.introspect.torch_private import current_graph_task, forward_hooks, hooks_of

INPUT_OF = "input of "


@dataclass(frozen=True)
class Function:
    """An activation called as a function, with the arguments that come after its first.

    >>> Function("leaky_relu", (0.1,))(torch.tensor([-1.0, 2.0]))
    tensor([-0.1000,  2.0000])
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``."""
        function = getattr(F, self.name, None) or getattr(torch, self.name)
        result: Tensor = function(x, *self.args, **dict(self.kwargs))
        return result


@dataclass(frozen=True)
class Place:
    """A place at which an activation is read: what a module returns, is given, or a function of what it returns.

    Args:
        path: of the module.
        given: whether what it is given is read, and not what it returns.
        kind: the activation's name, where it is called as a function.
        function: applied to what is read, where no module holds the result.
        caller: the module whose forward calls the function.

    >>> Place("fc1").name, Place("fc2", given=True).name, Place("fc1", function=Function("relu")).name
    ('fc1', 'input of fc2', 'relu of fc1')
    """

    path: str
    given: bool = False
    kind: str = ""
    function: Function | None = None
    caller: str = ""

    @property
    def name(self) -> str:
        """The name of the readings."""
        if self.function is not None:
            return f"{self.function.name} of {self.path}"
        return f"{INPUT_OF}{self.path}" if self.given else self.path


class Reader(Protocol):
    """An object that a tap reports to. ``copy.deepcopy`` and ``pickle`` of a tapped model copy its readers too."""

    def begin(self, model: nn.Module) -> None:
        """A forward pass of the whole model begins."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """The place named ``path`` held ``activation`` (``None``: no tensor) for the ``call``-th time in this pass."""

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """A checkpoint runs ``path`` again, in a backward pass, to restore the tensors that it saved."""


class Taps:
    """Hooks on modules that read activations, as long as it is open: ``with Taps(...)`` or ``.remove()``.

    The model's outputs are the very objects they were. Of a tuple, a mapping or a dataclass the first
    floating-point tensor is read. A place that is a string is what the module of that path returns.
    """

    def __init__(self, model: nn.Module, places: Iterable[str | Place], reader: Reader) -> None:
        self._counter = counter = _Counter(reader)
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(_Begin(counter))]
        modules = dict(model.named_modules(remove_duplicate=False))
        if not isinstance(places, Iterable) or isinstance(places, str | Tensor):
            raise ArgumentTypeError(f"places are a list of module paths, not {places!r}", code="wrong-type")
        for place in places:
            if not isinstance(place, str | Place):
                raise ArgumentTypeError(f"a place is the path of a module, not {place!r}", code="wrong-type")
            where = Place(place) if isinstance(place, str) else place
            module = modules.get(where.path)
            if module is None:
                raise ArgumentError(f"the model has no module {where.path!r} to read at", code="where-matches-nothing")
            # What the caller gave and what forward returned, before hooks make something else of it.
            if where.given:
                tap = _InputTap(where, counter)
                self._handles.append(module.register_forward_pre_hook(tap, with_kwargs=True, prepend=True))
            else:
                prepend = bool(where.kind) and where.function is None
                self._handles.append(module.register_forward_hook(_Tap(where, counter), prepend=prepend))
        settle(model)

    @property
    def paused(self) -> bool:
        """True while nothing is read, as while others look at the model."""
        return self._counter.paused

    def restart(self) -> None:
        """Count calls from one again, as the next pass of the whole model does by itself."""
        self._counter.calls.clear()

    def remove(self) -> None:
        """Take the hooks off the model; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


class _Counter:
    """Counts the calls of every layer within one pass of the model."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.calls: dict[str, int] = {}
        self.paused = False

    def __getstate__(self) -> dict[str, Any]:
        return {"reader": self.reader, "calls": {}, "paused": False}


class _Begin:
    def __init__(self, counter: _Counter) -> None:
        self.counter = counter

    def __call__(self, model: nn.Module, _args: Any) -> None:
        if not self.counter.paused and not _recomputing():
            self.counter.calls.clear()
            self.counter.reader.begin(model)


class _Tap:
    def __init__(self, place: Place, counter: _Counter) -> None:
        self.place = place
        self.name = place.name
        self.counter = counter
        self.rewritten: bool | None = None  # whether the forward that calls the function is not that of the class
        self.outdated = False

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.take(output)

    def take(self, value: Any) -> None:
        """Report one activation."""
        counter = self.counter
        if counter.paused:
            return
        if self.outdated:
            raise UnsupportedModelError(
                self.place.caller,
                f"its forward was rewritten after {self.name} was selected; select again, with a new LBE",
                code="forward-replaced",
            )
        activation = activation_of(value)
        if activation is not None and self.place.function is not None:
            activation = self.place.function(activation)
        if _recomputing():
            counter.reader.recompute(self.name, activation)
            return
        counter.calls[self.name] = number = counter.calls.get(self.name, 0) + 1
        counter.reader.read(self.name, number, activation)


class _InputTap(_Tap):
    def __call__(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.take(args[0] if len(args) == 1 and not kwargs else (args, kwargs))


def settle(model: nn.Module) -> None:
    """Let taps that apply a function follow a change of the model.

    They read after what was put behind their module, as the caller does, and know whether the caller is still the same.
    """
    modules = dict(model.named_modules())
    for path, module in modules.items():
        for key, tap in list(forward_hooks(module).items()):
            if isinstance(tap, _Tap) and tap.place.function is not None:
                forward_hooks(module).move_to_end(key)
                inside = tap.place.path.removesuffix(path)  # where this model is in the one that has the taps
                caller = modules.get(tap.place.caller.removeprefix(inside)) if tap.place.path.endswith(path) else None
                now = None if caller is None else "forward" in vars(caller)
                tap.rewritten = now if tap.rewritten is None else tap.rewritten
                tap.outdated = now is not None and now != tap.rewritten


def _recomputing() -> bool:
    return not torch.compiler.is_compiling() and current_graph_task() != -1


@contextmanager
def pausing(model: nn.Module) -> Iterator[None]:
    """Within it, the taps that are on the model now read nothing."""
    hooks = [hook for module in model.modules() for hook in hooks_of(module)]
    counters = [hook.counter for hook in hooks if isinstance(hook, _Begin | _Tap) and not hook.counter.paused]
    try:
        for counter in counters:
            counter.paused = True
        yield
    finally:
        for counter in counters:
            counter.paused = False


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, tuple, list, mapping or dataclass, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))


def activation_of(output: Any) -> Tensor | None:
    """The first floating-point tensor in what a module returned."""
    if isinstance(output, Tensor):  # the usual case, kept short
        return output if output.is_floating_point() else None
    return next((t for t in tensors_in(output) if t.is_floating_point()), None)


def reading_name(path: str, call: int) -> str:
    """``path`` for the first call in a pass, ``path#2`` for the second."""
    return path if call == 1 else f"{path}#{call}"
