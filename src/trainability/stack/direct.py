"""Layers that run for all members at once, on inputs ``(E, B, ...)`` and with parameters ``(E, ...)``."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainability.introspect.activations import is_nonlinearity
from trainability.introspect.torch_private import BatchNormNd, check_norm_input
from trainability.nn.norms import FeatureBatchNorm, FeatureGroupNorm
from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.shortcut import Add, ScaledAdd
from trainability.nn.weighted_sum import WeightedSum
from trainability.stack.members import StackedDropout, StackedLeakyReLU, Turn

# They compute every entry by itself, and have no parameters.
_ELEMENTWISE = (nn.Identity, Add, WeightedSum, ShapedActivation, StackedDropout, StackedLeakyReLU)


class Direct(nn.Module):
    """A layer that maps all members' inputs by `direct`, and one member's as it did before."""

    turn: Turn

    def forward(self, *inputs: Tensor) -> Any:
        """Map the inputs of one member, or of all."""
        return self.direct(*inputs) if self.turn.way == "direct" else super().forward(*inputs)

    @abstractmethod
    def direct(self, *inputs: Any) -> Tensor:
        """Map the inputs of all members."""


class StackedLinear(Direct, nn.Linear):
    """A linear layer by one batched product."""

    def direct(self, x: Tensor) -> Tensor:
        """Map ``(E, B, ..., in)`` to ``(E, B, ..., out)``."""
        rows = x.flatten(1, -2)  # (E, S, in)
        if self.bias is None:
            out = torch.bmm(rows, self.weight.mT)
        elif torch.is_autocast_enabled(x.device.type):
            out = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT)
        else:
            out = _StackedProduct.apply(rows, self.weight, self.bias)
        return out.view(*x.shape[:-1], -1)


class _StackedProduct(torch.autograd.Function):
    """x Wᵀ + b per member, with the gradient of W as W lies in memory; autograd's is transposed and then copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if wanted[0] else None,
            torch.bmm(grad.mT, x) if wanted[1] else None,
            grad.sum(1) if wanted[2] else None,
        )


class StackedFlatten(Direct, nn.Flatten):
    """Flatten that counts dimensions from a member's own first one."""

    def direct(self, x: Tensor) -> Tensor:
        """Flatten, leaving the members' dimension alone."""
        return x.flatten(*(d + 1 if d >= 0 else d for d in (self.start_dim, self.end_dim)))


class StackedBatchNorm(Direct, BatchNormNd):
    """BatchNorm of the members' features beside one another, as so many features of one network."""

    def direct(self, x: Tensor) -> Tensor:
        """Normalize ``(E, B, C, ...)``, or ``(E, B, ..., C)`` where features lie in the last dimension."""
        check_norm_input(self, x[0])
        by_feature = x.flatten(1, -2) if getattr(self, "last", False) else x  # (E, S, C), or (E, B, C, ...)
        mean = variance = None
        if self.track_running_stats or not self.training:
            mean, variance = self.running_mean, self.running_var
        if self.training and mean is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normalized: Tensor = F.batch_norm(
            by_feature.transpose(0, 1).flatten(1, 2),  # (S, E C, ...)
            None if mean is None else mean.view(-1),
            None if variance is None else variance.view(-1),
            None if self.weight is None else self.weight.flatten(),
            None if self.bias is None else self.bias.flatten(),
            self.training or mean is None,
            self.momentum or 0.0,
            self.eps,
        )
        y: Tensor = normalized.unflatten(1, (len(x), -1)).transpose(0, 1).reshape(x.shape)
        return y


class StackedLayerNorm(Direct, nn.LayerNorm):
    """LayerNorm, scaled and shifted for each member."""

    def direct(self, x: Tensor) -> Tensor:
        """Normalize the trailing dimensions of ``(E, B, ...)``."""
        dims = len(self.normalized_shape)
        return _scaled(F.layer_norm(x, self.normalized_shape, eps=self.eps), self.weight, self.bias, x.dim() - dims)


class StackedGroupNorm(Direct, nn.GroupNorm):
    """GroupNorm, scaled and shifted for each member; a group is what LayerNorm normalizes, which is faster."""

    def direct(self, x: Tensor) -> Tensor:
        """Normalize ``(E, B, C, ...)``, or ``(E, B, ..., C)`` where features lie in the last dimension."""
        at = x.dim() - 1 if isinstance(self, FeatureGroupNorm) else 2
        groups = x.unflatten(at, (self.num_groups, -1)).flatten(at + 1)
        normalized = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).view(x.shape)
        return _scaled(normalized, self.weight, self.bias, at)


class StackedScaledAdd(Direct, ScaledAdd):
    """x + s · f(x) with a number s for each member."""

    def direct(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add two tensors ``(E, B, ...)``."""
        return x + self.scale.view(-1, *[1] * (x.dim() - 1)) * branch


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, at: int) -> Tensor:
    """Multiply by weights ``(E, ...)``, whose second dimension is dimension ``at`` of x, and add biases."""
    if weight is None:
        return x
    shape = (len(x), *[1] * (at - 1), *weight.shape[1:], *[1] * (x.dim() - at - weight.dim() + 1))
    if bias is None:
        return (x * weight.view(shape)).to(x.dtype)
    return torch.addcmul(bias.view(shape), x, weight.view(shape)).to(x.dtype)


def _kinds(direct: type[Direct], *plain: type[nn.Module]) -> dict[type[nn.Module], type[Direct]]:
    return {kind: type(f"Stacked{kind.__name__}", (direct, kind), {}) for kind in plain}


_DIRECT: dict[type[nn.Module], type[Direct]] = {
    nn.Linear: StackedLinear,
    nn.Flatten: StackedFlatten,
    nn.LayerNorm: StackedLayerNorm,
    ScaledAdd: StackedScaledAdd,
    **_kinds(StackedBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, FeatureBatchNorm),
    **_kinds(StackedGroupNorm, nn.GroupNorm, FeatureGroupNorm),
}


def layers_are_known(module: nn.Module) -> bool:
    """Return True where every layer can run for all members at once."""
    return all(_is_known(layer) for layer in layers(module))


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, BatchNormNd) and layer.momentum is None:  # a cumulative mean asks how many batches there were
        return False
    if type(layer) in _DIRECT or isinstance(layer, (Direct, *_ELEMENTWISE)):
        return True
    return is_nonlinearity(layer) and next(layer.parameters(), None) is None


def teach_(module: nn.Module, turn: Turn) -> None:
    """Let the layers run for all members at once, whenever the way is ``"direct"``."""
    for layer in layers(module):
        if direct := _DIRECT.get(type(layer)):
            layer.__class__ = direct
            layer.turn = turn  # type: ignore[assignment]


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that compute: those without children, and those known that have some, for hooks to call."""
    for own in module.modules():
        if next(own.children(), None) is None or type(own) in _DIRECT or isinstance(own, Direct):
            yield own
