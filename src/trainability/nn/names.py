"""Words of settings that can be checked without loading torch: nonlinearities, and scales of residual branches."""

from typing import Literal

from trainability.errors import ArgumentError

Scale = Literal["identity", "skipinit", "rezero", "fixup"]
NONLINEARITIES = ("relu", "leaky_relu", "tanh", "selu", "elu", "gelu", "silu", "softplus", "sigmoid")


def check_nonlinearity(name: str) -> None:
    """Raise ArgumentError for a nonlinearity that the architectures do not know."""
    if name not in NONLINEARITIES:
        raise ArgumentError(
            f"there is no nonlinearity {name!r}; choose from {', '.join(NONLINEARITIES)}", code="unknown-choice"
        )
