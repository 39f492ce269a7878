"""Independent-component layers: in front of the weight layers of a model, and in residual units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from trainability.errors import ArgumentError, check_choice, check_keep
from trainability.remedies.registry import BuiltIn, Remedy, register

Unit = Literal["relu-ic-conv", "ic-conv-relu", "conv-relu-ic"]
_CLAIM = "steadier training, faster convergence and a better end than with BatchNorm alone (Chen et al., 2019)"


@register("ic", title="BatchNorm and Dropout before every weight layer", sets="normalization", order=2, claim=_CLAIM)
@dataclass(frozen=True)
class IC(BuiltIn):
    """Put an `ICLayer`, BatchNorm and then Dropout, before each weight layer but the first.

    Each weight layer gets a child ``ic`` through which its inputs go; its own parameters keep their names. Layers that
    take the model's inputs themselves are first ones. With ``inputs`` the order is that of one call; without, that of
    definition.

    Args:
        keep: probability of keeping an entry, in (0, 1].
        dropout: ``"element"`` or ``"channel"`` (`ICLayer`).
        batchnorm: ``"remove"`` takes out each BatchNorm of which everything that it gives goes through IC layers, as
            far as one call on ``inputs`` shows (without, each that is defined between two weight layers). One that
            feeds a weight layer directly hands over its scale, shift and statistics; of the others the report says
            that they are dropped. ``"keep"`` leaves all.

    Reference: Chen et al. (2019).

    >>> from torch import nn
    >>> from trainability import apply_
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> [change.path for change in apply_(model, IC(keep=0.9)).changes]
    ['2.ic', '4.ic']
    """

    keep: float = 0.95
    dropout: Literal["element", "channel"] = "element"
    batchnorm: Literal["remove", "keep"] = "remove"

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_choice("dropout", self.dropout, ("element", "channel"))
        check_choice("batchnorm", self.batchnorm, ("remove", "keep"))


@dataclass(frozen=True)
class ICUnit(Remedy):
    """Residual units with IC layers, of which the package's own ResNet is built (`trainability.models.resnet`).

    Args:
        unit: the order of what a unit is made of.
        keep: probability of keeping an entry, in (0, 1].

    Reference: Chen et al. (2019), section 4.

    >>> ICUnit("ic-conv-relu").options("resnet")
    {'unit': 'ic-conv-relu', 'keep': 0.95}
    """

    unit: Unit = "relu-ic-conv"
    keep: float = 0.95

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        check_keep(self.keep)

    def options(self, model: str) -> Mapping[str, Any]:
        """Options of the ResNet.

        Raises:
            ArgumentError: another model.
        """
        if model != "resnet":
            raise ArgumentError(f"{self.unit} is a unit of the package's resnet, not of {model}", code="does-not-apply")
        return {"unit": self.unit, "keep": self.keep}

    def plan(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the units of a finished model stay what they are."""
        raise ArgumentError(
            f"a finished model has its units; build one with trainability.models.resnet(..., unit={self.unit!r}), "
            "or put IC layers into this one with apply_(model, IC())",
            code="does-not-apply",
        )


for _name, _title, _more in (
    ("relu-ic-conv", "residual units of ReLU, IC layer and convolution", "; the best of the units"),
    ("ic-conv-relu", "residual units of IC layer, convolution and ReLU", ""),
    ("conv-relu-ic", "residual units of convolution, ReLU and IC layer", ""),
):
    register(
        _name,
        title=_title,
        sets="normalization",
        order=2,
        baseline="batchnorm",
        claim=_CLAIM + _more,
        preset={"unit": _name},
    )(ICUnit)
