"""Mean and variance of every neuron over a batch, with a gradient that stores nothing new.

The variance of neuron k over S samples is v_k = (1/S) sum_s (x_sk - m_k)^2, so

    d v_k / d x_sk = (2/S) (x_sk - m_k)

and the backward pass needs the activation itself (which the network keeps anyway), the means, and one
coefficient per neuron. The centred activation is formed again in the backward pass rather than kept:
subtracting first is exact where a dying signal is a millionth of its mean, which expanding the square
would round away.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainability.errors import ArgumentError

Neurons = Literal["position", "channel"]

_is_wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda _: False)


def samples(a: Tensor, neurons: Neurons = "position", channel_dim: int | None = None) -> Tensor:
    """View an activation as samples of neurons: ``(S, n)``, or ``(B, n, P)`` for maps by channel.

    ``"position"`` makes every entry of ``a[0]`` a neuron and the batch its samples. ``"channel"`` makes
    the positions further samples; the channel is dimension 1 of maps (4 or 5 dimensions) and the last
    dimension otherwise, unless ``channel_dim`` names it. The order of the neurons is that of memory.
    """
    check_neurons(neurons, channel_dim, a.dim())
    if neurons == "position":
        if a.dim() == 2:
            return a
        if a.dim() < 2:
            return a.reshape(-1, 1)
        if not a.is_contiguous():  # channels_last: walk the dimensions as they lie in memory, without a copy
            order = sorted(range(1, a.dim()), key=a.stride, reverse=True)
            a = a.permute(0, *order)
        return a.flatten(1)
    dim = channel_dim if channel_dim is not None else (1 if a.dim() in (4, 5) else -1)
    dim %= a.dim()
    if dim == a.dim() - 1:
        return a.reshape(-1, a.shape[-1])
    if a.dim() >= 4 and not transformed(a) and a.is_contiguous(memory_format=_channels_last(a.dim())) and dim == 1:
        return a.movedim(1, -1).flatten(0, -2)
    return a.movedim(dim, 1).flatten(2)


def check_neurons(neurons: str, channel_dim: int | None, dims: int | None = None) -> None:
    """Raise ValueError for what `samples` does not know."""
    if neurons not in {"position", "channel"}:
        raise ArgumentError(f"neurons is {neurons!r}; choose 'position' or 'channel'")
    if channel_dim is not None and dims is not None and not -dims <= channel_dim < dims:
        raise ArgumentError(f"channel_dim is {channel_dim}, but the activation has {dims} dimensions")


def _channels_last(dims: int) -> torch.memory_format:
    return torch.channels_last if dims == 4 else torch.channels_last_3d


def sample_rows(x: Tensor) -> Tensor:
    """What `samples` returned as ``(S, n)``, positions being rows like any other sample."""
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(0, 1)


def sample_count(x: Tensor) -> int:
    """The number of samples per neuron in what `samples` returned."""
    return x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[2]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per neuron, ``(n,)`` each; half types are accumulated in float32."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.is_cpu and not torch.compiler.is_compiling() and not transformed(x):
        # One call, two passes, vectorised over neurons; uncompiled, var_mean over dimension 0 is ten times slower here.
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        return mean, variance
    variance, mean = torch.var_mean(x, dim=0 if x.dim() == 2 else (0, 2), correction=0)
    return mean, variance


def transformed(x: Tensor) -> bool:
    """Whether a tensor is one within torch.func, whose transformations go through torch's own operations alone."""
    return not torch.compiler.is_compiling() and _is_wrapped(x)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every neuron, with a gradient."""
    if transformed(x):
        return statistics(x)
    found: tuple[Tensor, Tensor] = Moments.apply(x)
    return found


class Moments(torch.autograd.Function):
    """``Moments.apply(x)`` is the mean and biased variance of every neuron, ``(n,)`` each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both statistics."""
        ctx.set_materialize_grads(False)
        mean, variance = statistics(x)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor | None, grad_variance: Tensor | None) -> Tensor | None:
        """Return (2/S) (x - m) grad_variance + grad_mean / S."""
        x, mean = ctx.saved_tensors
        count = sample_count(x)
        if x.dim() == 3:  # (B, n, P)
            mean, grad_mean, grad_variance = _column(mean), _column(grad_mean), _column(grad_variance)
        return _input_gradient(x, mean, grad_mean, grad_variance, count)


class GroupMoments(torch.autograd.Function):
    """The same for L small ``(S, n)`` activations of one shape, ``(L, n)`` each.

    It costs little more than one of them, since for small tensors the calls cost more than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, *xs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both statistics for all."""
        ctx.set_materialize_grads(False)
        stacked = torch.stack(xs)  # (L, S, n)
        means = stacked.mean(1)
        variances = stacked.sub_(means.unsqueeze(1)).square_().mean(1)
        ctx.save_for_backward(means, *xs)
        return means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor | None, grad_variance: Tensor | None) -> Any:
        """Return the gradient of each."""
        means, *xs = ctx.saved_tensors
        count = xs[0].shape[0]
        if grad_variance is None:
            grad_variance = torch.zeros_like(means)
        # One tensor per activation and not slices of one, so that autograd adds to them in place.
        gradients = torch._foreach_sub(xs, means.unbind(0))
        torch._foreach_mul_(gradients, (grad_variance * (2.0 / count)).unbind(0))
        if grad_mean is not None:
            torch._foreach_add_(gradients, (grad_mean / count).unbind(0))
        return tuple(gradients)


class StackMoments(torch.autograd.Function):
    """The same for one layer of a stack of E networks: ``(E, S, n)`` to two ``(E, n)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both statistics for every network."""
        ctx.set_materialize_grads(False)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.mean(1)
        variance = (wide - mean.unsqueeze(1)).square_().mean(1)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor | None, grad_variance: Tensor | None) -> Tensor | None:
        """Return (2/S) (x - m) grad_variance + grad_mean / S."""
        x, mean = ctx.saved_tensors
        by_mean, by_variance = (g if g is None else g.unsqueeze(1) for g in (grad_mean, grad_variance))
        return _input_gradient(x, mean.unsqueeze(1), by_mean, by_variance, x.shape[1])


class MappedMoments(torch.autograd.Function):
    """Mean and biased variance of a member's ``(B, ...)`` within `torch.vmap` over a stack, taken for all at once."""

    @staticmethod
    def forward(x: Tensor, neurons: Neurons) -> tuple[Tensor, Tensor]:
        """Unmapped, it is `statistics`."""
        return statistics(samples(x, neurons))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the gradient is that of `StackMoments`."""

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int, None], x: Tensor, neurons: Neurons) -> tuple[Any, tuple[int, int]]:
        """Compute both statistics for every network."""
        x = stack_samples(x.movedim(in_dims[0], 0), neurons)
        return StackMoments.apply(x), (0, 0)


def stack_samples(a: Tensor, neurons: Neurons) -> Tensor:
    """``(E, B, ...)`` as samples of neurons ``(E, S, n)``; see `samples`."""
    if a.dim() == 2:
        return a.unsqueeze(-1)
    if neurons == "position":
        return a.flatten(2)
    if a.dim() in (5, 6):  # maps: the channel is dimension 1 of a member's
        a = a.movedim(2, -1)
    return a.flatten(1, -2)


def _column(t: Any) -> Any:
    return t if t is None else t.unsqueeze(-1)


def _input_gradient(
    x: Tensor, mean: Tensor, grad_mean: Tensor | None, grad_variance: Tensor | None, count: int
) -> Tensor | None:
    """(2/count) (x - mean) grad_variance + grad_mean / count, broadcast over samples, in one new buffer."""
    if grad_variance is None:
        return None if grad_mean is None else (grad_mean / count).expand_as(x).to(x.dtype)
    gradient = _deviation_times(x, mean, grad_variance * (2.0 / count))
    if grad_mean is not None:
        gradient.add_(grad_mean / count)
    return gradient.to(x.dtype)


def _deviation_times(x: Tensor, mean: Tensor, coefficient: Tensor) -> Tensor:
    """(x - mean) · coefficient, subtracting first."""
    stacked = mean.dim() == 3
    if stacked or not x.is_cpu or x.dtype != mean.dtype or torch.compiler.is_compiling():
        return (x - mean).mul_(coefficient)
    # The gradient of a squared error is this, too, doubled, and takes one pass over memory instead of two; with a mean
    # for each network of a stack it is many times slower.
    gradient = torch.empty_like(x)
    torch.ops.aten.mse_loss_backward.grad_input(coefficient * 0.5, x, mean, 0, grad_input=gradient)
    return gradient
