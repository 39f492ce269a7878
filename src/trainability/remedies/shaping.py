"""DKS, TAT and EOC: activations, sums and weights under which a kernel passes through a deep network."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from trainability.kernels import DKSTarget, EOCTarget, TATTarget
from trainability.layers import Where
from trainability.remedies.apply import Plan
from trainability.remedies.trial import plan_tried


@dataclass(frozen=True)
class DKS(DKSTarget):
    """Deep kernel shaping: an activation's constants are chosen so that no subnetwork's kernel degenerates.

    What happens to the model, in this order:

    1. It is read off one call on ``inputs`` (`trainability.kernels.read`). What the theory has no rule for is refused
       by name; so is BatchNorm, unless ``batchnorm="remove"`` takes it out.
    2. All weights are drawn anew from ``init`` and biases set to zero, unless ``init=None``.
    3. Every sum of branches becomes a weighted one whose squared weights add up to 1. ``shortcut`` is the weight of
       the summand with fewer weight layers; by default the weights keep the ratio that they have.
    4. Every activation, module or function, is replaced by output_scale · (φ(input_scale · x + input_shift) +
       output_shift), whose constants meet Q(1) = Q'(1) = 1, C(0) = 0 and a largest C'(1) of ``zeta``. ReLUs become
       leaky ones.

    Without shortcuts a network shaped by DKS trains fast with second-order optimisers (K-FAC, Shampoo, SOAP), and
    more slowly with SGD or Adam.

    Reference: Martens et al. (2021), "Summary of our method".
    """

    init: Literal["suo"] | None = "suo"
    shortcut: float | None = None
    batchnorm: Literal["refuse", "remove"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.shortcut, self.batchnorm, self.init, "suo")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "dks", **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan the stages above."""
        return plan_tried(self, model, where, inputs, self.init is not None, self.shortcut, self.batchnorm)


@dataclass(frozen=True)
class TAT(TATTarget):
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

    init: Literal["suo"] | None = "suo"
    shortcut: float | None = None
    batchnorm: Literal["refuse", "remove"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.shortcut, self.batchnorm, self.init, "suo")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "tat", **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan the stages of `DKS`."""
        return plan_tried(self, model, where, inputs, self.init is not None, self.shortcut, self.batchnorm)


@dataclass(frozen=True)
class EOC(EOCTarget):
    """The edge of chaos: Gaussian weights and biases whose variances keep q at 1 and C'(1) at 1.

    Activations stay as they are. Weights have variance σ_w² / fan-in and biases σ_b², those of the activation before
    the layer (of the first activation, for the layers before it); sums become weighted ones as in `DKS`.

    Reference: Poole et al. (2016); Schoenholz et al. (2017).
    """

    init: Literal["gaussian"] | None = "gaussian"
    shortcut: float | None = None
    batchnorm: Literal["refuse", "remove"] = "refuse"

    def __post_init__(self) -> None:
        _check(self.shortcut, self.batchnorm, self.init, "gaussian")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "eoc", **asdict(self)}

    def plan(self, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
        """Plan the stages above."""
        return plan_tried(self, model, where, inputs, self.init is not None, self.shortcut, self.batchnorm)


def _check(shortcut: float | None, batchnorm: str, init: str | None, allowed: str) -> None:
    if shortcut is not None and not 0 <= shortcut <= 1:
        raise ValueError(f"the shortcut's weight lies between 0 and 1 (it is {shortcut})")
    if batchnorm not in ("refuse", "remove"):
        raise ValueError(f"batchnorm is 'refuse' or 'remove', not {batchnorm!r}")
    if init not in (None, allowed):
        raise ValueError(f"init is {allowed!r} or None, not {init!r}")
