"""Tasks by name. A new one is a file here, or any module that registers it."""

from collections.abc import Callable

from trainability._lazy import Registry
from trainability.tasks.base import Task

_registered: Registry[Callable[[], Task]] = Registry("task", "trainability.tasks")


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
    return _registered.names()


def task(name: str) -> Task:
    """The task of a name; ArgumentError where there is none.

    >>> task("classification").metric.name
    'accuracy'
    """
    return _registered.find(name)()
