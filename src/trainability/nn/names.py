"""Words of settings that can be checked without loading torch: nonlinearities, and scales of residual branches."""

from typing import Literal

from trainability.errors import check_choice
from trainability.introspect.activation_table import CHOICES

Scale = Literal["identity", "skipinit", "rezero", "fixup"]


def check_nonlinearity(name: str) -> None:
    """Raise ArgumentError for a nonlinearity that the architectures do not know."""
    check_choice("nonlinearity", name, CHOICES)
