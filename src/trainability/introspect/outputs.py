"""Outputs of a model: a tensor, or a nest of tuples, lists, mappings and dataclasses of tensors."""

import copy
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainability.introspect.hooks import tensors_in


def map_tensors(function: Callable[..., Tensor], *outputs: Any) -> Any:
    """Outputs like the first ones, with what a function makes of the tensors at the same place in all of them.

    >>> import torch
    >>> map_tensors(lambda *t: torch.stack(t), {"a": torch.zeros(2)}, {"a": torch.ones(2)})
    {'a': tensor([[0., 0.],
            [1., 1.]])}
    """
    if isinstance(outputs[0], Tensor):  # the usual case, kept short
        return function(*outputs)
    return with_tensors(outputs[0], (function(*group) for group in zip(*map(tensors_in, outputs), strict=True)))


def in_dtype(nest: Any, dtype: torch.dtype) -> Any:
    """The same nest with its real tensors in a dtype; indices and masks stay as they are."""
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, nest)


def first_of(nest: Any, count: int) -> Any:
    """The first samples of a nest of tensors ``(N, ...)``, at most so many."""
    return map_tensors(lambda t: t[:count], nest)


def with_tensors(outputs: Any, tensors: Iterator[Tensor]) -> Any:
    """The same outputs with other tensors, which come in the order of `tensors_in`."""
    if isinstance(outputs, Tensor):
        return next(tensors)
    if is_dataclass(outputs) and not isinstance(outputs, type):
        made = {entry: with_tensors(getattr(outputs, entry.name), tensors) for entry in fields(outputs)}
        return replace(outputs, **{entry.name: value for entry, value in made.items() if entry.init})
    if isinstance(outputs, MutableMapping):
        twin = copy.copy(outputs)
        for key, value in outputs.items():
            twin[key] = with_tensors(value, tensors)
        return twin
    if isinstance(outputs, list | tuple):
        entries = [with_tensors(value, tensors) for value in outputs]
        return type(outputs)(*entries) if hasattr(outputs, "_fields") else type(outputs)(entries)
    return outputs
