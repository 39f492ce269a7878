"""Architectures by name: the settings of each, and the network that they describe.

A new architecture is one file: a frozen dataclass of its settings, registered by its name.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, ClassVar, TypeVar

from trainability.errors import ArgumentError, suggestion

if TYPE_CHECKING:
    from torch import nn


class Architecture(ABC):
    """The settings of one architecture, a frozen dataclass whose docstring describes each under ``Args:``.

    Its module is imported when settings are checked, so it loads torch no earlier than in ``build``.
    """

    name: ClassVar[str]

    def built_in(self) -> list[str]:
        """The names of the remedies that the settings amount to, which the recipe's own must go with."""
        return []

    @abstractmethod
    def build(self, shape: tuple[int, ...], outputs: int) -> "nn.Module":
        """The network for inputs ``(B, *shape)``, with PyTorch's default weights from the random state."""


Settings = TypeVar("Settings", bound=type[Architecture])
_registered: dict[str, type[Architecture]] = {}
_MOST = {"depth": 10**5}


def register(name: str) -> Callable[[Settings], Settings]:
    """Make an architecture known by its name, in recipes and on the command line.

    >>> from dataclasses import dataclass
    >>> @register("perceptron")
    ... @dataclass(frozen=True)
    ... class Perceptron(Architecture):
    ...     width: int = 8
    ...     def build(self, shape, outputs):
    ...         ...
    >>> architecture("perceptron")().width
    8
    >>> del _registered["perceptron"]
    """

    def keep(settings: Settings) -> Settings:
        settings.name = name
        _registered[name] = settings
        return settings

    return keep


def names() -> tuple[str, ...]:
    """The names of all architectures."""
    _load_own()
    return tuple(_registered)


def architecture(name: str) -> type[Architecture]:
    """The settings of an architecture.

    Raises:
        ArgumentError: there is none of that name; the message suggests one.
    """
    if name not in names():
        hint = suggestion(name, _registered)
        raise ArgumentError(
            f"there is no model {name!r}; {hint}choose from {', '.join(_registered)}", code="unknown-choice"
        )
    return _registered[name]


def check_sizes(**sizes: int) -> None:
    """Raise ArgumentError for a size below 1, or one of which a network could not even be described in memory."""
    for name, value in sizes.items():
        most = _MOST.get(name, 10**6)
        if not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most}"
            raise ArgumentError(f"{name} is {value}; it must be {bound}", code="out-of-range")


@cache
def _load_own() -> None:
    import trainability.models as room

    for module in pkgutil.iter_modules(room.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{room.__name__}.{module.name}")
