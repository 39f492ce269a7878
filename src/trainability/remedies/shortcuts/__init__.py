"""Shortcuts around the layers of a model, plain or with a scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from trainability.errors import check_choice, check_whole
from trainability.nn.names import Scale
from trainability.remedies.registry import BuiltIn, register


@dataclass(frozen=True)
class Residual(BuiltIn):
    """Give layers shortcuts: x + s · f(x) in the place of f(x).

    Where an `nn.Sequential` holds weight layers and nonlinearities in turn, f is ``layers`` of these pairs whose input
    and output have one shape. With ``where`` f is each module that is chosen. Modules keep their names; the first
    weight layer of f gets a child ``shortcut``.

    Args:
        scale: ``"identity"``: s is 1. ``"rezero"``: s is learned, and 0 at first. ``"skipinit"``: s is learned, and
            1 / √(number of branches) at first; 0, which its authors allow, is ``"rezero"``. ``"fixup"``: s is learned,
            and 1 at first; f ends with its last weight layer, whose weights begin at 0; its other weights are those of
            He, times (number of branches)^(-1 / (2m - 2)) for the m weight layers of f; those outside of branches
            are He's, and the last of the model begins at 0. Biases begin at 0 and stay what they are, one per neuron.
        layers: how many weight layers make an f.

    Raises:
        ValueError: without ``inputs``, from which the shapes are read.

    Reference: He et al. (2016); De and Smith (2020), section 4; Bachlechner et al. (2021), section 3; Zhang, Dauphin
    and Ma (2019), section 3.

    >>> import torch
    >>> from torch import nn
    >>> from trainability import apply_
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> report = apply_(model, Residual("rezero"), inputs=torch.randn(2, 4))
    >>> print(report)
    Residual(scale='rezero', layers=1): 1 changed
      2 to 3: f(x) -> x + 0 · f(x), the scale learned (a shortcut around 1 weight layer)
      skipped 0 to 1: it maps (2, 4) to (2, 8), and a shortcut needs one shape
    """

    scale: Scale = "identity"
    layers: int = 1

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, get_args(Scale))
        check_whole("layers", self.layers)

    def options(self, model: str) -> Mapping[str, Any] | None:
        """The scale of the branches of the package's own ResNet, which has its shortcuts."""
        return {"residual": True, "scale": self.scale} if model == "resnet" else None


for _scale, _title in {
    "identity": "an identity shortcut around every layer",
    "rezero": "a shortcut around every layer, whose scale is learned from 0 on",
    "skipinit": "a shortcut around every layer, whose scale is learned from a small one on",
    "fixup": "a shortcut around every layer, with weights that begin at 0",
}.items():
    register(
        "residual" if _scale == "identity" else _scale,
        title=_title,
        sets=("shortcuts", "weights") if _scale == "fixup" else "shortcuts",
        preset={"scale": _scale},
        conflicts={"weightnorm": "weights that begin at 0 have no direction to normalize"} if _scale == "fixup" else {},
    )(Residual)
