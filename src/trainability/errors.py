"""Every error that the package raises on purpose.

Each is a `TrainabilityError` and also the Python error that a reader expects (`ValueError`, `TypeError`, ...). Its
``code`` is stable, in lower case with hyphens, and is what to match on; the message is for the person and may change.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar


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
