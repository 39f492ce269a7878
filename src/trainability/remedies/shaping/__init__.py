"""DKS, TAT and EOC: activations, sums and weights under which a kernel passes through a deep network."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from trainability.introspect.select import Where
from trainability.remedies.apply import Plan
from trainability.remedies.shaping.check import Check
from trainability.remedies.shaping.shaper import Shaping, WeightInit
from trainability.remedies.shaping.trial import plan_tried
from trainability.signal import DKSTarget, EOCTarget, TATTarget


class _Remedy(Shaping):
    """What the three have in common as remedies."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": type(self).__name__.lower(), **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan the stages that the class describes."""
        return self.plan_checked(model, where, inputs)[0]

    def plan_checked(self, model: nn.Module, where: Where | None, inputs: Any) -> tuple[Plan, Check | None]:
        """Plan them, and hold what the planned model does against the prediction."""
        return plan_tried(self, model, where, inputs)


@dataclass(frozen=True)
class DKS(_Remedy, DKSTarget):
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


@dataclass(frozen=True)
class TAT(_Remedy, TATTarget):
    """Tailored activation transformations: DKS with other conditions, which suit (leaky) ReLUs best.

    The stages are those of `DKS`. A smooth activation meets Q(1) = Q'(1) = C'(1) = 1 and a largest C''(1) of ``tau``;
    a ReLU becomes the leaky ReLU, times √(2 / (1 + slope²)), under which the largest C(0) is ``eta``.

    Reference: Zhang, Botev and Martens (2022), section 4.

    >>> import torch
    >>> from trainability import apply_
    >>> model = nn.Sequential(*[m for _ in range(50) for m in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 2))
    >>> report = apply_(model, TAT(eta=0.9), inputs=torch.randn(4, 16))
    >>> model[1]
    ShapedActivation(relu, negative_slope=0.430523, output_scale=1.29895)
    """


@dataclass(frozen=True)
class EOC(_Remedy, EOCTarget):
    """The edge of chaos: Gaussian weights and biases whose variances keep q at 1 and C'(1) at 1.

    Activations stay as they are. Weights have variance σ_w² / fan-in and biases σ_b², those of the activation before
    the layer; the layers that the inputs feed have (1 − σ_b²) / fan-in, since these have mean square 1. Sums become
    weighted ones as in `DKS`.

    Reference: Poole et al. (2016); Schoenholz et al. (2017).
    """

    init: WeightInit | None = "gaussian"
