"""Modules that models are made of and remedies put into networks: IC layers, norms, and sums at the end of branches."""

from trainability.modules.ic import ICLayer
from trainability.modules.norms import FeatureBatchNorm, FeatureGroupNorm
from trainability.modules.shortcut import Add, ScaledAdd

__all__ = ["Add", "FeatureBatchNorm", "FeatureGroupNorm", "ICLayer", "ScaledAdd"]
