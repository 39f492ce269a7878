"""The structure and values of a model at one moment, and putting them back."""

import operator
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainability.introspect.torch_private import (
    DispatchMode,
    DispatchModeBesideCompiler,
    compiler_is_loaded,
    schema_of,
    set_version,
    storage_number,
    version_of,
)


class Snapshot:
    """The structure of a model: its modules, and everything that they hold in dictionaries, lists, sets and deques.

    What has not changed since is not touched, so that a read-only dictionary is no obstacle; what has is changed back
    in place, since others may hold it, as the handle of a hook does. Objects of other classes are not looked into.

    Args:
        model: any module.
        unregistered: whether modules that the model keeps in a plain list, or another container, belong to it.

    Attributes:
        modules: all of the model.
        tensors: all that the modules hold: parameters, buffers, and tensors in attributes.
    """

    def __init__(self, model: nn.Module, *, unregistered: bool = False) -> None:
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self._own: list[tuple[nn.Module, type, dict[str, Any]]] = []
        self._held: list[tuple[Any, Any]] = []  # every container with a copy of it
        registered = set(model.modules())
        open_: list[Any] = [model]
        seen: set[int] = set()
        while open_:
            value = open_.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                self.tensors.append(value)
            elif isinstance(value, nn.Module):
                if unregistered or value in registered:
                    self.modules.append(value)
                    self._own.append((value, type(value), vars(value)))
                    open_.append(vars(value))
            elif isinstance(value, tuple):
                open_ += value
            elif (kind := _kind(value)) is not None:
                self._held.append((value, copy := _copied(kind, value)))
                inside = copy.values() if isinstance(copy, dict) else copy
                open_ += [part for part in inside if type(part) not in _PLAIN]

    def changed(self) -> bool:
        """Return True where a module, or a container that it holds, has something else in it than then.

        A number or a word that is equal is the same one; values of tensors are not looked at.
        """
        return any(type(module) is not kind or vars(module) is not own for module, kind, own in self._own) or any(
            not _is_alike(_kind(container), container, copy, same=_is_equal) for container, copy in self._held
        )

    def restore(self) -> None:
        """Put back modules, hooks and attributes; values of tensors stay as they are now."""
        for module, kind, attributes in self._own:
            if type(module) is not kind:  # torch makes a class for a module whose weight is parametrized
                module.__class__ = kind
            if vars(module) is not attributes:
                module.__dict__ = attributes
        for container, copy in self._held:
            kind = _kind(container)
            if not _is_alike(kind, container, copy):
                kind.clear(container)
                (kind.update if issubclass(kind, dict | set) else kind.extend)(container, copy)


_PLAIN = {type(None), bool, int, float, complex, str, bytes}  # hold nothing, and are most of what there is
# By the methods of these a container is read and written, whatever a class derived from it makes of them.
_KINDS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)


def _kind(value: Any) -> Any:
    return type(value) if type(value) in _KINDS else next((kind for kind in _KINDS if isinstance(value, kind)), None)


def _copied(kind: Any, container: Any) -> Any:
    return dict(kind.items(container)) if issubclass(kind, dict) else kind(kind.__iter__(container))


def _is_alike(kind: Any, now: Any, before: Any, same: Callable[[Any, Any], bool] = operator.is_) -> bool:
    """True for a container that holds the very same objects as its copy, in the same order."""
    if kind is set:
        return set(map(id, kind.__iter__(now))) == set(map(id, before))
    if kind.__len__(now) != len(before) or not all(map(same, kind.__iter__(now), before)):
        return False
    return not issubclass(kind, dict) or all(map(same, kind.values(now), before.values()))


def _is_equal(a: Any, b: Any) -> bool:
    return a is b or (type(a) in _PLAIN and type(a) is type(b) and a == b)


def unregistered_tensors(model: nn.Module) -> list[Tensor]:
    """The tensors that a model holds in attributes, or in what these hold, and not as parameters or buffers."""
    registered = set(map(id, (*model.parameters(), *model.buffers())))
    return [t for t in Snapshot(model, unregistered=True).tensors if id(t) not in registered]


class Values:
    """Copies of the values of tensors, to be put back to the bit."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore(self) -> None:
        """Write back those that differ."""
        with torch.no_grad():
            for tensor, value in self._copies:
                if not _same_bits(tensor, value):
                    tensor.copy_(value)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """True for two tensors that are alike to the bit; False where that is not known, as for sparse ones."""
    if a.is_meta:
        return True
    if (a.dtype, a.shape, a.device, a.layout) != (b.dtype, b.shape, b.device, b.layout) or a.layout != torch.strided:
        return False
    if type(a) not in (Tensor, nn.Parameter, nn.Buffer) or a.is_quantized:
        return False
    return torch.equal(*(t.detach().contiguous().view(-1).view(torch.uint8) for t in (a, b)))


class Guard(DispatchMode):
    """Within it, a tensor is copied right before an operation writes to it for the first time.

    So values can be put back to the bit, and nothing is copied where nothing is written. An operation says itself what
    it writes to; those of BatchNorm do not say it of the running statistics, which `observing` therefore copies.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._leaves = [
            (t, t.detach(), _place(t), t.grad, t.requires_grad) for t in tensors if t.is_leaf and not t.is_inference()
        ]
        self._watched: dict[int, list[Tensor]] = {}
        self._copies: list[tuple[Tensor, Tensor, int]] = []
        gradients = [grad for *_, grad, _ in self._leaves if grad is not None]
        for tensor in (*tensors, *gradients):
            storage = storage_number(tensor)
            if storage is not None:
                self._watched.setdefault(storage, []).append(tensor.detach())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep what the operation writes to, and run it."""
        kwargs = kwargs or {}
        schema = schema_of(func)
        if schema is not None and schema.is_mutable:
            for number, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(args[number] if number < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _keep(self, written: Any) -> None:
        for target in written if isinstance(written, list | tuple) else [written]:
            storage = storage_number(target) if isinstance(target, Tensor) else None
            for tensor in self._watched.pop(storage, ()) if storage is not None else ():
                version = -1 if tensor.is_inference() else version_of(tensor)
                self._copies.append((tensor, tensor.clone(), version))

    def restore(self) -> None:
        """Put back the values, the gradients, whether one is required, and the memory in which a tensor lies."""
        with torch.no_grad():
            for tensor, value, version in self._copies:
                tensor.data.copy_(value)
                if version >= 0:  # so that a backward pass that still waits finds what it saved
                    set_version(tensor, version)
            for tensor, itself, place, grad, required in self._leaves:
                if _place(tensor) != place:  # something else was assigned to .data
                    tensor.data = itself
                if tensor.grad is not grad:
                    tensor.grad = grad
                if tensor.requires_grad != required:
                    tensor.requires_grad_(required)


class GuardBesideCompiler(Guard, DispatchModeBesideCompiler):
    """The same where torch's compiler is loaded, which would otherwise compile what the guard does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep what the operation writes to, and run it."""
        return super().__torch_dispatch__(func, types, args, kwargs)


def guard_of(tensors: list[Tensor]) -> Guard:
    """A guard of the kind that is needed now."""
    return (GuardBesideCompiler if compiler_is_loaded() else Guard)(tensors)


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """The place in memory of a tensor, and its layout there."""
    storage = storage_number(tensor)
    if storage is None:
        return None
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
