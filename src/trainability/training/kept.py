"""Whether what was read back is built like what was written, before any of it is used."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from torch import Tensor

from trainability.errors import ArgumentError


def check_kind(value: Any, kind: Any, name: str) -> None:
    """Raise ArgumentError where a nest of lists and dictionaries is not of an annotated kind.

    A dataclass stands for the dictionary that `dataclasses.asdict` makes of it. Of numbers a float may be an integer.

    Raises:
        ArgumentError: the message names the first part that is something else.

    >>> check_kind([(1, "a")], list[tuple[int, float]], "losses")
    Traceback (most recent call last):
    ...
    trainability.errors.ArgumentError: losses.0.1 is of type str, not float
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Union, UnionType):  # of something and None, as all are that are kept
        if value is not None:
            check_kind(value, inner[0], name)
    elif is_dataclass(kind) or is_typeddict(kind):
        hints = get_type_hints(kind)
        _check_keys(value, hints, name)
        for key, hint in hints.items():
            check_kind(value[key], hint, f"{name}.{key}")
    else:
        _check_type(value, origin or kind, name)
        if origin is dict:
            for key, item in value.items():
                check_kind(key, inner[0], f"a key of {name}")
                check_kind(item, inner[1], f"{name}.{key}")
        elif origin is list:
            for number, item in enumerate(value):
                check_kind(item, inner[0], f"{name}.{number}")
        elif origin is tuple:
            if len(value) != len(inner):
                raise ArgumentError(f"{name} has {len(value)} entries, not {len(inner)}", code="state-damaged")
            for number, (item, one) in enumerate(zip(value, inner, strict=True)):
                check_kind(item, one, f"{name}.{number}")


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
