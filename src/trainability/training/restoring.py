"""Taking back what was written: refused, before any of it is used, where it is not built as it was."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from torch import Tensor

from trainability.errors import ArgumentError


def as_kind(value: Any, kind: Any, name: str) -> Any:
    """Return a nest of lists and dictionaries as an annotated kind, whose dataclasses were written as dictionaries.

    Of numbers a float may be an integer.

    Raises:
        ArgumentError: it is not of that kind; the message names the first part that is something else.

    >>> as_kind({"losses": [1.0, "a"]}, dict[str, list[float]], "state")
    Traceback (most recent call last):
    ...
    trainability.errors.ArgumentError: state.losses.1 is of type str, not float
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):  # of something and None, as all are that are kept
        return None if value is None else as_kind(value, inner[0], name)
    if is_dataclass(kind) or is_typeddict(kind):
        hints = get_type_hints(kind)
        _check_keys(value, hints, name)
        return kind(**{key: as_kind(value[key], hint, f"{name}.{key}") for key, hint in hints.items()})
    _check_type(value, origin or kind, name)
    if origin is dict:
        for key in value:
            as_kind(key, inner[0], f"a key of {name}")
        return {key: as_kind(item, inner[1], f"{name}.{key}") for key, item in value.items()}
    if origin is list:
        return [as_kind(item, inner[0], f"{name}.{number}") for number, item in enumerate(value)]
    return value


def check_like(value: Any, own: Any, name: str) -> None:
    """Raise ArgumentError where something has other keys, lengths, shapes or types than one's own of the same name.

    >>> check_like({"rate": 0.1}, {"rate": 1.0, "step": 3}, "schedule")
    Traceback (most recent call last):
    ...
    trainability.errors.ArgumentError: schedule lacks step
    """
    if isinstance(own, Tensor):
        _check_type(value, Tensor, name)
        found, wanted = ((tuple(t.shape), t.dtype, t.layout) for t in (value, own))
        if found != wanted:
            raise ArgumentError(f"{name} is {found}, not {wanted}", code="state-damaged")
    elif isinstance(own, Mapping):
        _check_keys(value, own, name)
        for key, item in own.items():
            check_like(value[key], item, f"{name}.{key}")
    elif isinstance(own, list | tuple):
        _check_type(value, type(own), name)
        if len(value) != len(own):
            raise ArgumentError(f"{name} has {len(value)} entries, not {len(own)}", code="state-damaged")
        for number, (item, one) in enumerate(zip(value, own, strict=True)):
            check_like(item, one, f"{name}.{number}")
    else:
        _check_type(value, type(own), name)


def _check_keys(value: Any, wanted: Mapping[Any, Any], name: str) -> None:
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} is of type {type(value).__name__}, not a dictionary", code="state-damaged")
    if missing := [key for key in wanted if key not in value]:
        raise ArgumentError(f"{name} lacks {missing[0]}", code="state-damaged")
    if more := [key for key in value if key not in wanted]:
        raise ArgumentError(f"{name} has {more[0]!r}, which is not known", code="state-damaged")


def _check_type(value: Any, kind: type, name: str) -> None:
    number = kind in (int, float)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (number and isinstance(value, bool)):
        raise ArgumentError(f"{name} is of type {type(value).__name__}, not {kind.__name__}", code="state-damaged")
