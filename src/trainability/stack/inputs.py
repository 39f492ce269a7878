"""Inputs of the members of a stack: a tensor, or a tuple, list or mapping of tensors."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from trainability.errors import ArgumentError, ArgumentTypeError

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def map_inputs(function: Callable[[Tensor], Any], inputs: Inputs) -> Any:
    """Return what a function makes of every tensor: alone, in a tuple, or in a dictionary of the same names.

    >>> map_inputs(lambda t: t.shape, {"input_ids": torch.zeros(2, 5), "attention_mask": torch.ones(2, 5)})
    {'input_ids': torch.Size([2, 5]), 'attention_mask': torch.Size([2, 5])}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def inputs_of(inputs: Inputs, members: int) -> list[Any]:
    """Return the inputs of each member, of those of all."""
    return [map_inputs(itemgetter(member), inputs) for member in range(members)]


def first_tensor(inputs: Inputs) -> Tensor:
    """Return the tensor that comes first in inputs."""
    if isinstance(inputs, Tensor):
        return inputs
    return next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))


def check_inputs(inputs: Any, members: int | None = None) -> None:
    """Check inputs ``(B, ...)`` of one network, or ``(E, B, ...)`` of so many members.

    Raises:
        ArgumentTypeError: they are not dense tensors of real numbers, alone or in a tuple, list or mapping.
        ArgumentError: a tensor is not one of so many members.
    """
    if isinstance(inputs, Tensor):
        _check_tensor(inputs, members, "")
        return
    if not isinstance(inputs, list | tuple | Mapping) or not inputs:
        raise ArgumentTypeError(
            f"a stack takes a tensor, or a tuple, list or mapping of them, not {inputs!r}", code="wrong-type"
        )
    for name, tensor in inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs):
        if isinstance(inputs, Mapping) and not isinstance(name, str):
            raise ArgumentTypeError(
                f"a mapping of inputs means model(**inputs), so its keys are names of arguments, not {name!r}",
                code="wrong-type",
            )
        _check_tensor(tensor, members, f" as input {name!r}")


def _check_tensor(x: Any, members: int | None, where: str) -> None:
    if not isinstance(x, Tensor) or x.is_complex() or x.is_nested or x.layout != torch.strided:
        what = f"a tensor of {x.dtype} and {x.layout}" if isinstance(x, Tensor) else repr(x)
        raise ArgumentTypeError(f"a stack takes dense tensors of real numbers, not {what}{where}", code="wrong-type")
    if members is not None and (x.dim() < 2 or len(x) != members):
        raise ArgumentError(
            f"a stack of {members} takes tensors ({members}, B, ...), not {tuple(x.shape)}{where}", code="input-shape"
        )
