"""Changing a model so that information gets through: `apply_` and one file per family of remedy."""

from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.weighted_sum import WeightedSum
from trainability.remedies.apply import Change, Remedy, Report, apply_
from trainability.remedies.ic.plan import IC
from trainability.remedies.initialization.plan import Init
from trainability.remedies.normalization.plan import Normalize
from trainability.remedies.selu.plan import SELU
from trainability.remedies.shaping import DKS, EOC, TAT
from trainability.remedies.shortcuts.plan import Residual

__all__ = [
    "DKS",
    "EOC",
    "IC",
    "SELU",
    "TAT",
    "Change",
    "Init",
    "Normalize",
    "Remedy",
    "Report",
    "Residual",
    "ShapedActivation",
    "WeightedSum",
    "apply_",
]
