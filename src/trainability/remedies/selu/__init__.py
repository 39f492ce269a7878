"""Self-normalizing networks: SELU in the place of the activations of a model."""

from dataclasses import dataclass
from typing import Literal

from trainability.errors import check_choice
from trainability.remedies.registry import BuiltIn, register


@register("selu", title="SELU, with weights of variance 1 / fan-in", sets="weights", order=1)
@dataclass(frozen=True)
class SELU(BuiltIn):
    """Replace activations by SELU, and draw weights of variance 1 / fan-in, under which mean 0 and variance 1 are kept.

    Activations that are modules are replaced; those that are called as functions are, too, by rewriting the forward
    of the module that calls them, for which ``inputs`` are needed. Bounded ones (sigmoid, tanh and their like), which
    may be gates, are left alone unless an `nn.Sequential` goes on with them or ``where`` names them.

    Args:
        init: ``"lecun"``, Gaussian weights of variance 1 / fan-in and no biases, or None, which keeps the weights, as
            ``where`` does.

    Reference: Klambauer et al. (2017).

    >>> from torch import nn
    >>> from trainability import apply_
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> report = apply_(model, SELU())
    >>> model[1]
    SELU()
    """

    init: Literal["lecun"] | None = "lecun"

    def __post_init__(self) -> None:
        if self.init is not None:
            check_choice("init", self.init, ("lecun",))
