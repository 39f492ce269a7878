"""Expecting an error of the package by its kind and its code."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trainability.errors import TrainabilityError


@contextmanager
def refused(kind: type[TrainabilityError], code: str, match: str | None = None) -> Iterator[None]:
    """Within it, an error of this kind with this code is raised; ``match`` is for a path or number that it names."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert caught.value.code == code
