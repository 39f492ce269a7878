"""Changing a model so that information gets through: `apply_` and one file per family of remedy."""

from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.weighted_sum import WeightedSum
from trainability.remedies.apply import Change, Remedy, Report, apply_
from trainability.remedies.ic import IC
from trainability.remedies.init import Init
from trainability.remedies.normalize import Normalize
from trainability.remedies.residual import Residual
from trainability.remedies.selu import SELU
from trainability.remedies.shaping import DKS, EOC, TAT

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
