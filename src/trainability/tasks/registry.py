"""Tasks by name. A new one is a file in `kinds`, or any module that registers it."""

from collections.abc import Callable
from typing import Any, TypeVar

from trainability._lazy import Registry
from trainability.tasks.base import Task, TaskKind

Kind = TypeVar("Kind", bound=type[TaskKind])
_registered: Registry[type[TaskKind]] = Registry("task", "trainability.tasks.kinds")


def register(name: str) -> Callable[[Kind], Kind]:
    """Make a task known by its name, in recipes and on the command line; its module loads torch in functions alone.

    >>> from dataclasses import dataclass
    >>> from trainability.tasks.base import Loss
    >>> from trainability.tasks.metrics import Metric
    >>> @register("ranking")
    ... @dataclass(frozen=True)
    ... class Ranking(TaskKind):
    ...     def task(self):
    ...         return Task("ranking", Loss(..., "hinge loss", "H"), (Metric("inversions", "min", ..., worst=1.0),))
    >>> task("ranking").metric.name
    'inversions'
    >>> del _registered["ranking"]
    """

    def keep(kind: Kind) -> Kind:
        kind.registered = name
        _registered[name] = kind
        return kind

    return keep


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return _registered.names()


def kind(name: str) -> type[TaskKind]:
    """The settings of a task; ArgumentError where there is none of the name."""
    return _registered.find(name)


def task(name: str, **settings: Any) -> Task:
    """The task of a name; ArgumentError where there is none.

    >>> task("classification").metric.name
    'accuracy'
    """
    return kind(name)(**settings).task()
