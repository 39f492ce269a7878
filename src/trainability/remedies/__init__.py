"""Changing a model so that information gets through: `apply_` and one file per family of remedy."""

from trainability.remedies.activation import ShapedActivation
from trainability.remedies.apply import Change, Remedy, Report, apply_
from trainability.remedies.init import Init
from trainability.remedies.shaping import DKS, EOC, TAT
from trainability.remedies.weighted_sum import WeightedSum

__all__ = ["DKS", "EOC", "TAT", "Change", "Init", "Remedy", "Report", "ShapedActivation", "WeightedSum", "apply_"]
