"""Every error that the package raises on purpose, and the checks of single arguments that raise them.

Each is a `TrainabilityError` and also the Python error that a reader expects (`ValueError`, `TypeError`, ...). Its
``code`` is stable, in lower case with hyphens, and is what to match on; the message is for the person and may change.
"""

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, get_args, get_type_hints


class TrainabilityError(Exception):
    """Base of all errors of the package.

    Attributes:
        code: what went wrong, such as ``"weights-shared"``.

    >>> error = ArgumentError("alpha is 'a', not a number", code="alpha")
    >>> error.code, str(error), isinstance(error, ValueError)
    ('alpha', "alpha is 'a', not a number", True)
    """

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    def __reduce__(self) -> tuple[Callable[..., "TrainabilityError"], tuple[Any, ...]]:
        return partial(type(self), code=self.code), self.args


class ArgumentError(TrainabilityError, ValueError):
    """A value that cannot be used; the message names the argument, the value, and those that can."""

    default_code = "argument"


class ArgumentTypeError(TrainabilityError, TypeError):
    """Something of another kind than the argument takes."""

    default_code = "argument-type"


class StateError(TrainabilityError, RuntimeError):
    """A call at the wrong time, such as ``lbe(loss)`` without a pass before it."""

    default_code = "state"


class UnknownKeyError(TrainabilityError, KeyError):
    """No entry of that name in a result that is looked into like a dictionary."""

    default_code = "unknown-key"

    def __str__(self) -> str:  # KeyError shows the repr of its argument
        return str(self.args[0])


class UnknownIndexError(TrainabilityError, IndexError):
    """No entry of that number in a result that is looked into like a list."""

    default_code = "unknown-index"


class MissingExtraError(TrainabilityError, ImportError):
    """An optional dependency that is not installed; the message says which extra brings it."""

    default_code = "missing-extra"


class InfeasibleError(TrainabilityError, ValueError):
    """No constants meet the conditions. The message says why, and what the nearest value is that can be met."""

    default_code = "infeasible"


class ConfigError(TrainabilityError, ValueError):
    """A setting, or a combination of settings, that cannot be used."""

    default_code = "config"


class DataError(TrainabilityError, ValueError):
    """Data that cannot be loaded. The message says what was found and what to do."""

    default_code = "data"


class FolderError(TrainabilityError, ValueError):
    """A run folder that cannot be used as it is. The message says what to do."""

    default_code = "folder"


class UnsupportedModelError(TrainabilityError, ValueError):
    """A model, or one layer of it, that an operation cannot handle.

    ``path`` is the fully qualified name of the module concerned (``""`` for the whole model). The
    message says what was found there and what to do instead.
    """

    default_code = "unsupported-model"

    def __init__(self, path: str, problem: str, *, code: str | None = None) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path or 'the model'}: {problem}", code=code)

    def __reduce__(self) -> tuple[Callable[..., TrainabilityError], tuple[Any, ...]]:
        return partial(type(self), code=self.code), (self.path, self.problem)


def suggestion(given: object, choices: Iterable[str]) -> str:
    """A question about the nearest of the choices, or nothing.

    >>> suggestion("lba", ["lbe", "tat"])
    "did you mean 'lbe'? "
    """
    near = difflib.get_close_matches(str(given), list(choices), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ArgumentError for a word that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(
            f"{name} is {value!r}; {suggestion(value, choices)}choose from {', '.join(map(repr, choices))}",
            code="unknown-choice",
        )


def check_words(settings: object, *names: str) -> None:
    """Raise ArgumentError for a word that is none of those that a dataclass's annotation lists."""
    hints = get_type_hints(type(settings))
    for name in names:
        check_choice(name, getattr(settings, name), get_args(hints[name]))


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
        raise ArgumentError(f"{name} is {_shown(value)}; it must be a finite float64", code="out-of-range")


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
    import torch

    if not isinstance(value, torch.Tensor) or value.is_complex() or value.is_nested or value.is_quantized:
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
    torch = sys.modules.get("torch")  # where it is not loaded there are no tensors
    if torch is not None and isinstance(value, torch.Tensor):
        return "a nested tensor" if value.is_nested else f"a tensor of {value.dtype}"
    return repr(value)
