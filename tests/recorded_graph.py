"""A graph of the CPU's operations: what a CUDA graph does, so that recordings can be tested without a GPU.

Recording notes every ATen operation with the tensors that it takes and gives, and puts back what was there before, as
if nothing had been computed. A replay runs the operations again on the same tensors, so a number that Python decided,
or a tensor that was exchanged for another since, shows as it would on a GPU. And as there, an operation that waits for
the device cannot be recorded.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

T = TypeVar("T")
_WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "lift_fresh", "masked_select", "equal"}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # of each storage that was there and is written to
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in _WAITS:
            raise RuntimeError(f"{func} waits for the device and cannot be recorded")
        for i, argument in enumerate(func._schema.arguments):
            if _written(argument):
                for tensor in tree_iter(args[i] if i < len(args) else kwargs.get(argument.name)):
                    if isinstance(tensor, Tensor):
                        self._save(tensor)
        result = func(*args, **kwargs)
        fresh = all(r.alias_info is None for r in func._schema.returns)
        outputs = list(tree_iter(result)) if fresh else []
        self._made.update(t.untyped_storage().data_ptr() for t in outputs if isinstance(t, Tensor))
        self.operations.append((func, args, kwargs, outputs))
        return result

    def _save(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._made or address in self.before:
            return
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.before[address] = whole, whole.clone()


class RecordedGraph:
    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self._generators = [torch.default_generator, *generators]
        self.replays = 0
        self.recordings = 0

    def check(self, work: Callable[[], object]) -> None:
        with _Recorder():
            work()

    def rehearse(self, work: Callable[[], T]) -> T:
        return work()

    def record(self, work: Callable[[], T]) -> T:
        recorder = _Recorder()
        states = [g.get_state() for g in self._generators]
        try:
            with recorder:
                result = work()
        finally:
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)
            for whole, before in recorder.before.values():
                whole.copy_(before)
        self._operations = recorder.operations
        self.recordings += 1
        return result

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, outputs in self._operations:
                again = tree_iter(func(*args, **kwargs))
                for old, new in zip(outputs, again, strict=False):
                    if isinstance(new, Tensor):
                        old.untyped_storage().copy_(new.untyped_storage())


def _written(argument: Any) -> bool:
    # The schema of batch normalization does not say that it writes its statistics.
    return (argument.alias_info is not None and argument.alias_info.is_write) or argument.name.startswith("running_")
