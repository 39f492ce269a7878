"""Tasks by name. A new one is a file here, or any module that registers it."""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from trainability.errors import ArgumentError, suggestion
from trainability.tasks.base import Task

_registered: dict[str, Callable[[], Task]] = {}


def register(make: Callable[[], Task]) -> Callable[[], Task]:
    """Make a task known by the name of the function that returns it; its module loads torch in functions alone.

    >>> from trainability.tasks.base import Loss, Metric
    >>> @register
    ... def ranking() -> Task:
    ...     return Task("ranking", Loss(..., "hinge loss", "H"), (Metric("inversions", "min", ..., worst=1.0),))
    >>> task("ranking").metric.name
    'inversions'
    >>> del _registered["ranking"]
    """
    _registered[make.__name__] = make
    return make


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    _load_own()
    return tuple(_registered)


def task(name: str) -> Task:
    """The task of a name.

    Raises:
        ArgumentError: there is none; the message suggests one.

    >>> task("classification").metric.name
    'accuracy'
    """
    if name not in names():
        hint = suggestion(name, _registered)
        raise ArgumentError(
            f"there is no task {name!r}; {hint}choose from {', '.join(_registered)}", code="unknown-choice"
        )
    return _registered[name]()


@cache
def _load_own() -> None:
    import trainability.tasks as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
