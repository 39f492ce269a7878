"""Modules that models are made of and remedies put into networks: IC layers, norms, and sums at the end of branches."""

from trainability.nn.ic import ICLayer
from trainability.nn.norms import FeatureBatchNorm, FeatureGroupNorm
from trainability.nn.shortcut import Add, ScaledAdd

__all__ = ["Add", "FeatureBatchNorm", "FeatureGroupNorm", "ICLayer", "ScaledAdd"]
