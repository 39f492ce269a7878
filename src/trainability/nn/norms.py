"""Normalization of features that lie in dimension 1, or in the last as those of tokens do."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from trainability.errors import ArgumentError, check_whole
from trainability.introspect.torch_private import BatchNormNd


class FeatureBatchNorm(BatchNormNd):
    """BatchNorm over inputs of any number of dimensions.

    Args:
        features: how many there are.
        last: whether they lie in the last dimension, so that all others are samples, and not in dimension 1.
        place: where in a model this stands, for messages.
        options: as of `torch.nn.BatchNorm1d`: ``affine``, ``eps``, ``momentum``, ``device``, ``dtype``.

    Raises:
        ValueError: in training, on one sample per feature; on another number of features.

    >>> import torch
    >>> FeatureBatchNorm(8, last=True)(torch.randn(4, 5, 8)).shape
    torch.Size([4, 5, 8])
    """

    def __init__(self, features: int, *, last: bool = False, place: str = "", **options: Any) -> None:
        check_whole("features", features)
        super().__init__(features, **options)
        self.last = last
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        if not self.last or x.dim() == 2:
            return super().forward(x)
        self._check_input_dim(x)
        return super().forward(x.flatten(0, -2)).view(x.shape)

    def _check_input_dim(self, x: Tensor) -> None:
        place = f" {self.place}" if self.place else ""
        found = x.shape[-1 if self.last else 1] if x.dim() >= 2 else None
        if found != self.num_features:
            raise ArgumentError(
                f"the BatchNorm{place} takes {self.num_features} features in "
                f"{'the last dimension' if self.last else 'dimension 1'}, not inputs of shape {tuple(x.shape)}",
                code="input-shape",
            )
        if self.training and x.numel() // self.num_features < 2:
            raise ArgumentError(
                f"the BatchNorm{place} got one sample per feature (shape {tuple(x.shape)}), of which there is no "
                "variance: train on batches of two at the least, or call model.eval()",
                code="one-sample",
            )


class FeatureGroupNorm(nn.GroupNorm):
    """GroupNorm of features in the last dimension, each token by itself.

    >>> import torch
    >>> FeatureGroupNorm(2, 8)(torch.randn(4, 5, 8)).shape
    torch.Size([4, 5, 8])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        if input.dim() < 2 or input.shape[-1] != self.num_channels:
            raise ArgumentError(
                f"the GroupNorm takes {self.num_channels} features in the last dimension, not inputs of shape "
                f"{tuple(input.shape)}",
                code="input-shape",
            )
        rows = input.flatten(0, -2) if input.dim() > 2 else input
        return F.group_norm(rows, self.num_groups, self.weight, self.bias, self.eps).view(input.shape)
