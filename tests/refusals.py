"""The code of an error, which is what tests hold on to."""

from collections.abc import Callable
from typing import Any

import pytest

from trainability.errors import TrainabilityError


def code_of(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """The code of the error that a call ends in, which has to be one of the package and of the kind given."""
    with pytest.raises(TrainabilityError) as caught:
        call()
    assert isinstance(caught.value, kind)
    return caught.value.code
