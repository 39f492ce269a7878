"""Names that load on first use: those of packages (PEP 562), and those under which things are registered."""

import importlib
import pkgutil
import sys
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar

from trainability.errors import ArgumentError, TrainabilityError, suggestion

T = TypeVar("T")


def lazily(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, of whose modules ``homes`` gives the names."""
    home = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *home})


class Registry(dict[str, T], Generic[T]):
    """Things of one kind by name, which the modules of a package add when they are first asked for.

    Args:
        kind: of thing, in messages.
        package: whose modules add the package's own; they load nothing heavy when they are imported.
        error: raised for a name that there is not.
    """

    def __init__(self, kind: str, package: str, error: type[TrainabilityError] = ArgumentError) -> None:
        super().__init__()
        self._kind, self._package, self._error, self._loaded = kind, package, error, False

    def names(self) -> tuple[str, ...]:
        """All names, in alphabetical order."""
        if not self._loaded:
            self._loaded = True
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        return tuple(sorted(self))

    def find(self, name: object) -> T:
        """The thing of a name.

        Raises:
            TrainabilityError: there is none; the message suggests one.
        """
        if not isinstance(name, str) or name not in self.names():
            raise self._error(
                f"there is no {self._kind} {name!r}; {suggestion(name, self)}choose from {', '.join(self.names())}",
                code="unknown-choice",
            )
        return self[name]


@dataclass(frozen=True)
class Configured(ABC):
    """The settings of something that a recipe names: a frozen dataclass whose docstring describes them under ``Args:``.

    Its module is imported when settings are checked, so it loads torch no earlier than it is used.
    """

    registered: ClassVar[str]

    @property
    def name(self) -> str:
        """The name in recipes."""
        return self.registered

    @classmethod
    def settings(cls) -> dict[str, Field[Any]]:
        """The settings by name."""
        return {field.name: field for field in fields(cls)}

    def to_dict(self) -> dict[str, Any]:
        """The name and the settings, as in a recipe."""
        return {"name": self.name, **asdict(self)}
