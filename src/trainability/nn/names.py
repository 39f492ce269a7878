"""Words of settings that can be checked without loading torch: nonlinearities, and scales of residual branches."""

from typing import Literal

from trainability.errors import ArgumentError, suggestion
from trainability.introspect.activation_table import CHOICES

Scale = Literal["identity", "skipinit", "rezero", "fixup"]


def check_nonlinearity(name: str) -> None:
    """Raise ArgumentError for a nonlinearity that the architectures do not know."""
    if not isinstance(name, str) or name not in CHOICES:
        raise ArgumentError(
            f"there is no nonlinearity {name!r}; {suggestion(name, CHOICES)}choose from {', '.join(CHOICES)}",
            code="unknown-choice",
        )
