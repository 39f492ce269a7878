"""Reading activations as they pass, and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Asked at every reading, so the cheap way. A torch without it would count the recomputation of a checkpoint as a call.
_graph_task = getattr(torch._C, "_current_graph_task_id", lambda: -1)


class Reader(Protocol):
    """What a tap reports to. ``copy.deepcopy`` and ``pickle`` of a tapped model copy its readers too."""

    def begin(self, model: nn.Module) -> None:
        """A forward pass of the whole model begins."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Layer ``path`` returned ``activation`` (``None``: no tensor) for the ``call``-th time in this pass."""

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """A checkpoint runs ``path`` again, in a backward pass, to restore the tensors that it saved."""


class Taps:
    """Forward hooks on the layers at ``paths``, as long as it is open: ``with Taps(...)`` or ``.remove()``.

    The model's outputs are the very objects they were. Of an output that is a tuple, a mapping or a dataclass
    the first floating-point tensor is read.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], reader: Reader) -> None:
        self._counter = counter = _Counter(reader)
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(_Begin(counter))]
        self._handles += [model.get_submodule(p).register_forward_hook(_Tap(p, counter)) for p in paths]

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
    def __init__(self, path: str, counter: _Counter) -> None:
        self.path = path
        self.counter = counter

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        counter = self.counter
        if counter.paused:
            return
        if _recomputing():
            counter.reader.recompute(self.path, activation_of(output))
            return
        counter.calls[self.path] = number = counter.calls.get(self.path, 0) + 1
        counter.reader.read(self.path, number, activation_of(output))


def _recomputing() -> bool:
    return not torch.compiler.is_compiling() and _graph_task() != -1


@contextmanager
def pausing(model: nn.Module) -> Iterator[None]:
    """Within it, the taps that are on the model now read nothing."""
    hooks = [h for m in model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
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
