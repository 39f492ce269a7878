"""Reading activations as they pass, and nothing else."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainability.observe import tensors_in


class Reader(Protocol):
    """What a tap reports to. ``copy.deepcopy`` and ``pickle`` of a tapped model copy its readers too."""

    def begin(self, model: nn.Module) -> None:
        """A forward pass of the whole model begins."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Layer ``path`` returned ``activation`` (``None``: no tensor) for the ``call``-th time in this pass."""


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

    def __getstate__(self) -> dict[str, Any]:
        return {"reader": self.reader, "calls": {}}


class _Begin:
    def __init__(self, counter: _Counter) -> None:
        self.counter = counter

    def __call__(self, model: nn.Module, _args: Any) -> None:
        self.counter.calls.clear()
        self.counter.reader.begin(model)


class _Tap:
    def __init__(self, path: str, counter: _Counter) -> None:
        self.path = path
        self.counter = counter

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        calls = self.counter.calls
        calls[self.path] = number = calls.get(self.path, 0) + 1
        self.counter.reader.read(self.path, number, activation_of(output))


def activation_of(output: Any) -> Tensor | None:
    """The first floating-point tensor in what a module returned."""
    if isinstance(output, Tensor):  # the usual case, kept short
        return output if output.is_floating_point() else None
    return next((t for t in tensors_in(output) if t.is_floating_point()), None)


def reading_name(path: str, call: int) -> str:
    """``path`` for the first call in a pass, ``path#2`` for the second."""
    return path if call == 1 else f"{path}#{call}"
