"""DKS, TAT and EOC: activations, sums and weights under which a kernel passes through a deep network."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from trainability.errors import ArgumentError
from trainability.remedies.registry import BuiltIn, register
from trainability.signal.targets import DKSTarget, EOCTarget, TATTarget

_LEARNED = "shaping takes sums of fixed weights, and the scale of a shortcut would be learned"
_IC = "the BatchNorm of an IC layer undoes the shaping"
_CONFLICTS = {
    "batchnorm": "BatchNorm makes an output depend on the whole batch and undoes the shaping",
    **dict.fromkeys(("ic", "relu-ic-conv", "ic-conv-relu", "conv-relu-ic"), _IC),
    **dict.fromkeys(("rezero", "skipinit"), _LEARNED),
}


@dataclass(frozen=True)
class Shaping(BuiltIn):
    """The settings that DKS, TAT and EOC share.

    Args:
        init: how weights are drawn anew: suo, of EOC gaussian; null keeps them
        shortcut: weight of the summand with fewer weight layers in every sum, 0 to 1; null keeps the ratio there is
        batchnorm: of a model that has some: refuse it, or remove them
    """

    init: Literal["suo", "gaussian"] | None = "suo"
    shortcut: float | None = None
    batchnorm: Literal["refuse", "remove"] = "refuse"

    def __post_init__(self) -> None:
        if (check := getattr(super(), "__post_init__", None)) is not None:
            check()
        number = isinstance(self.shortcut, int | float) and not isinstance(self.shortcut, bool)
        if self.shortcut is not None and not (number and 0 <= self.shortcut <= 1):
            raise ArgumentError(f"shortcut is a weight between 0 and 1, not {self.shortcut!r}", code="shortcut")
        if not isinstance(self.batchnorm, str) or self.batchnorm not in ("refuse", "remove"):
            raise ArgumentError(f"batchnorm is 'refuse' or 'remove', not {self.batchnorm!r}", code="batchnorm-option")
        own = type(self).init
        if self.init is not None and (not isinstance(self.init, str) or self.init != own):
            raise ArgumentError(f"init is {own!r} or None, not {self.init!r}", code="init")


_shaping = partial(register, sets="weights", order=1, conflicts=_CONFLICTS)


@_shaping("dks", title="activations and weights shaped by DKS")
@dataclass(frozen=True)
class DKS(Shaping, DKSTarget):
    """Deep kernel shaping: an activation's constants are chosen so that no subnetwork's kernel degenerates.

    What happens to the model, in this order:

    1. It is read off one call on ``inputs`` (`trainability.signal.read`). What the theory has no rule for is refused
       by name; so is BatchNorm, unless ``batchnorm="remove"`` takes it out.
    2. All weights are drawn anew from ``init`` and biases set to zero, unless ``init=None``.
    3. Every sum of branches becomes a weighted one whose squared weights add up to 1. ``shortcut`` is the weight of
       the summand with fewer weight layers; by default the weights keep the ratio that they have.
    4. Every activation, module or function, is replaced by output_scale · (φ(input_scale · x + input_shift) +
       output_shift), whose constants meet Q(1) = Q'(1) = 1, C(0) = 0 and a largest C'(1) of ``zeta``. ReLUs become
       leaky ones.

    Its authors train networks without shortcuts as fast as residual ones with K-FAC, and more slowly with SGD.

    Reference: Martens et al. (2021), "Summary of our method".
    """


@_shaping("tat", title="activations and weights shaped by TAT")
@dataclass(frozen=True)
class TAT(Shaping, TATTarget):
    """Tailored activation transformations: DKS with other conditions, which suit (leaky) ReLUs best.

    The stages are those of `DKS`. A smooth activation meets Q(1) = Q'(1) = C'(1) = 1 and a largest C''(1) of ``tau``;
    a ReLU becomes the leaky ReLU, times √(2 / (1 + slope²)), under which the largest C(0) is ``eta``.

    Reference: Zhang, Botev and Martens (2022), section 4.

    >>> import torch
    >>> from torch import nn
    >>> from trainability import apply_
    >>> model = nn.Sequential(*[m for _ in range(50) for m in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 2))
    >>> report = apply_(model, TAT(eta=0.9), inputs=torch.randn(4, 16))
    >>> model[1]
    ShapedActivation(relu, negative_slope=0.430523, output_scale=1.29895)
    """


@_shaping("eoc", title="weights and biases at the edge of chaos")
@dataclass(frozen=True)
class EOC(Shaping, EOCTarget):
    """The edge of chaos: Gaussian weights and biases whose variances keep q at 1 and C'(1) at 1.

    Activations stay as they are. Weights have variance σ_w² / fan-in and biases σ_b², those of the activation before
    the layer; the layers that the inputs feed have (1 − σ_b²) / fan-in, since these have mean square 1. Sums become
    weighted ones as in `DKS`.

    Reference: Poole et al. (2016); Schoenholz et al. (2017).
    """

    init: Literal["suo", "gaussian"] | None = "gaussian"
