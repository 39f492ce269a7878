"""The codes behind the sentences of the command line."""

import importlib
import sys
from typing import Any

import pytest

from trainability.cli import common
from trainability.errors import TrainabilityError


def codes_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Watch a command; the list fills with the code of each error that it ends with."""
    codes: list[str] = []

    def fail(sentence: str) -> Any:
        error = sys.exception()
        codes.append(error.code if isinstance(error, TrainabilityError) else type(error).__name__)
        common.fail(sentence)

    monkeypatch.setattr(importlib.import_module(f"trainability.cli.{command}"), "fail", fail)
    return codes
