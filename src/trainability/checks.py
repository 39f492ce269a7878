"""Checks of single arguments that several functions take in the same way."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from trainability.errors import ArgumentError, ArgumentTypeError


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ArgumentError for a word that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise ArgumentError(f"{name} is {value!r}; choose {', '.join(others)} or {last}", code="unknown-choice")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise ArgumentTypeError for what is no whole number, and ArgumentError for one that is too small."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is a whole number, not {value!r}", code="wrong-type")
    if number < least:
        raise ArgumentError(f"{name} is {number}; the least is {least}", code="out-of-range")


def check_number(name: str, value: Any) -> None:
    """Raise ArgumentTypeError for what is no number, and ArgumentError for NaN and infinity."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ArgumentTypeError(f"{name} is a number, not {value!r}", code="wrong-type")
    if not math.isfinite(value):
        raise ArgumentError(f"{name} is {value}, and must be finite", code="out-of-range")


def check_keep(keep: Any) -> None:
    """Raise an error for what is not a probability of keeping an entry, which may not be 0."""
    check_number("keep", keep)
    if not 0 < keep <= 1:
        raise ArgumentError(f"keep is the probability of keeping an entry, in (0, 1], not {keep}", code="out-of-range")
