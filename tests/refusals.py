"""Errors by their kind and code, which is what tests hold on to."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trainability.errors import TrainabilityError


@contextmanager
def refused(kind: type[TrainabilityError], code: str, match: str | None = None) -> Iterator[None]:
    """Within it, an error of this kind with this code is raised; ``match`` is for a path or number that it names."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert caught.value.code == code


def code_of(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """The code of the error that a call ends in, which has to be one of the package and of the kind given."""
    with pytest.raises(TrainabilityError) as caught:
        call()
    assert isinstance(caught.value, kind)
    return caught.value.code


def codes_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Watch the commands; the list fills with the code of each error that one ends with."""
    terminal, *commands = (
        importlib.import_module(f"trainability.cli.{name}") for name in ("terminal", "experiment", "request", "sweep")
    )
    codes: list[str] = []

    def fail(sentence: str) -> Any:
        error = sys.exception()
        codes.append(error.code if isinstance(error, TrainabilityError) else type(error).__name__)
        terminal.fail(sentence)

    for module in commands:
        monkeypatch.setattr(module, "fail", fail)
    return codes
