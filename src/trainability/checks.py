"""Checks of single arguments that several functions take in the same way."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from trainability.errors import ArgumentError, ArgumentTypeError


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ArgumentError for a word that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name} is {value!r}; choose from {', '.join(map(repr, choices))}", code="unknown-choice")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise ArgumentTypeError for what is no whole number, and ArgumentError for one that is too small or too large."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentTypeError(f"{name} is a whole number, not {_shown(value)}", code="wrong-type")
    if not least <= int(value) < 2**63:
        raise ArgumentError(f"{name} is {value}; the least is {least}, the most 2^63 - 1", code="out-of-range")


def check_number(name: str, value: Any) -> None:
    """Raise ArgumentTypeError for what is no number, and ArgumentError for NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{name} is a number, not {_shown(value)}", code="wrong-type")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond all floating-point ones
        finite = False
    if not finite:
        raise ArgumentError(f"{name} must be finite, and is no number of float64", code="out-of-range")


def check_keep(keep: Any) -> None:
    """Raise an error for what is not a probability of keeping an entry, which may not be 0."""
    check_number("keep", keep)
    if not 0 < keep <= 1:
        raise ArgumentError(f"keep is the probability of keeping an entry, in (0, 1], not {keep}", code="out-of-range")


def check_list(name: str, value: Any) -> None:
    """Raise ArgumentTypeError for what is neither a list nor a tuple, and ArgumentError for an empty one."""
    if not isinstance(value, list | tuple):
        raise ArgumentTypeError(f"{name} is a list, not {_shown(value)}", code="wrong-type")
    if not value:
        raise ArgumentError(f"{name} is empty", code="empty")


def check_real_tensor(name: str, value: object) -> None:
    """Raise ArgumentTypeError for what is no dense tensor of real numbers, and ArgumentError for one without values."""
    if not isinstance(value, Tensor) or value.is_complex() or value.is_nested or value.is_quantized:
        raise ArgumentTypeError(f"{name} is a dense tensor of real numbers, not {_shown(value)}", code="wrong-type")
    if value.layout != torch.strided:
        raise ArgumentTypeError(f"{name} is a dense tensor of real numbers, not {value.layout}", code="wrong-type")
    if value.is_meta:
        raise ArgumentError(f"{name} is on the meta device and has no values", code="no-values")


def check_flag(name: str, value: object) -> None:
    """Raise ArgumentTypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is True or False, not {_shown(value)}", code="wrong-type")


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return "a nested tensor" if value.is_nested else f"a tensor of {value.dtype}"
    return repr(value)
