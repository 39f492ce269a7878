"""Mean and variance of every neuron over a batch, with a gradient that stores nothing new.

The variance of neuron k over S samples is v_k = (1/S) sum_s (x_sk - m_k)^2, so

    d v_k / d x_sk = (2/S) (x_sk - m_k)

and the backward pass needs the activation itself (which the network keeps anyway), the means, and one
coefficient per neuron. The centered activation is formed again in the backward pass rather than kept:
subtracting first keeps a dying signal that is small beside its mean, which expanding the square would
round away.

The mean is rounded to float32 before it is subtracted, which is felt where it is more than some thirty standard
deviations; `careful_statistics` goes on in float64 there, and where a variance is beyond float32.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainability.errors import ArgumentError, ArgumentTypeError, check_choice
from trainability.introspect.torch_private import foreach_add_, foreach_mul_, foreach_sub, is_wrapped

Neurons = Literal["position", "channel"]


def samples(a: Tensor, neurons: Neurons = "position", channel_dim: int | None = None) -> Tensor:
    """View an activation as samples of neurons: ``(S, n)``, or ``(B, n, P)`` for maps by channel.

    ``"position"`` makes every entry of ``a[0]`` a neuron and the batch its samples. ``"channel"`` makes
    the positions further samples; the channel is dimension 1 of maps (4 or 5 dimensions) and the last
    dimension otherwise, unless ``channel_dim`` names it. The order of the neurons is that of memory.
    """
    check_neurons(neurons, channel_dim, a.dim())
    if a.dim() < 2:
        return a.reshape(-1, 1)
    if neurons == "position":
        if a.dim() == 2:
            return a
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
    """Raise ArgumentError or ArgumentTypeError for what `samples` does not know."""
    check_choice("neurons", neurons, get_args(Neurons))
    if channel_dim is None:
        return
    if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
        raise ArgumentTypeError(f"channel_dim is the number of a dimension, not {channel_dim!r}", code="wrong-type")
    if dims is not None and not -dims <= channel_dim < dims:
        raise ArgumentError(
            f"channel_dim is {channel_dim}, but the activation has {dims} dimensions", code="out-of-range"
        )
    if neurons == "channel" and channel_dim in (0, -(dims or 0)):
        raise ArgumentError("channel_dim is dimension 0, which is that of the batch", code="out-of-range")


def _channels_last(dims: int) -> torch.memory_format:
    return torch.channels_last if dims == 4 else torch.channels_last_3d


def sample_rows(x: Tensor) -> Tensor:
    """The result of `samples` as ``(S, n)``, positions being rows like any other sample."""
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(0, 1)


def sample_count(x: Tensor) -> int:
    """The number of samples per neuron in what `samples` returned."""
    return x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[2]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per neuron, ``(n,)`` each; half types are accumulated in float32."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if not x.is_cpu or torch.compiler.is_compiling() or transformed(x):
        variance, mean = torch.var_mean(x, dim=0 if x.dim() == 2 else (0, 2), correction=0)
        return mean, variance
    if x.dim() == 2 and x.shape[0] > _MANY:
        return _of_many(x)
    return _of_columns(x)


_MANY = 512  # samples, from which on the additions of one neuron are done in groups
_ROWS = 256  # samples in a group
_COLUMNS = 1024  # of one call, which then finds its rows in the cache when it comes by again
_SQUARE_RATIO = 1000  # of mean to standard deviation


def _of_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """In one call, in two passes that are vectorized over neurons; var_mean over dimension 0 is ten times slower."""
    mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, variance


def _of_many(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same for so many samples that a sum of one after another would lose digits.

    It is taken of groups of `_ROWS` samples, several of which are the columns of one view where there are few neurons;
    what is left over is one more group. With m_i and v_i for group i, the variance of S samples, of which it has S_i,
    is Σ S_i (v_i + (m_i − m)²) / S.
    """
    count, neurons = x.shape
    together = count - count % _ROWS
    at_once = _ROWS * max(1, _COLUMNS // neurons)
    parts = [_of_columns(part.reshape(_ROWS, -1)) for part in x[:together].split(at_once)]
    means, variances = (torch.cat([t.view(-1, neurons) for t in kind]).double() for kind in zip(*parts, strict=True))
    mean = means.mean(0)
    variance = (means - mean).square_().add_(variances).mean(0)
    if count > together:
        rest_mean, rest_variance = (t.double() for t in _of_columns(x[together:]))
        share = (count - together) / count
        apart = rest_mean - mean
        variance = variance + share * (rest_variance - variance) + share * (1 - share) * apart * apart
        mean = mean + share * apart
    return mean.to(x.dtype), variance.to(x.dtype)


def careful_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """`statistics`, in float64 where float32 does not hold them. It waits for the device to ask whether that is so."""
    mean, variance = statistics(x)
    return statistics(x.double()) if _is_float32_short(x, mean, variance) else (mean, variance)


def careful_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """`Moments` as `careful_statistics` has them on the CPU; elsewhere asking would make every step wait."""
    if transformed(x):
        return statistics(x)
    mean, variance = Moments.apply(x)
    if x.is_cpu and not torch.compiler.is_compiling() and _is_float32_short(x, mean.detach(), variance.detach()):
        mean, variance = Moments.apply(x.double())
    return mean, variance


def _is_float32_short(x: Tensor, mean: Tensor, variance: Tensor) -> bool:
    """True where a variance is beyond float32, or so small beside the mean that the rounding of it is felt."""
    if x.dtype == torch.float64 or x.device.type not in ("cpu", "cuda"):  # others have no float64
        return False
    enough = (mean.square() <= variance * _SQUARE_RATIO) & variance.isfinite()
    try:
        return not bool(enough.all())
    except RuntimeError:  # under torch.vmap nothing can be decided on values
        return False


def transformed(x: Tensor) -> bool:
    """True for a tensor within torch.func, whose transformations go through operations of torch alone."""
    return not torch.compiler.is_compiling() and is_wrapped(x)


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
        means, variances = (t.view(len(xs), -1) for t in statistics(torch.cat(xs, 1)))
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
        gradients = foreach_sub(xs, means.unbind(0))
        foreach_mul_(gradients, (grad_variance * (2.0 / count)).unbind(0))
        if grad_mean is not None:
            foreach_add_(gradients, (grad_mean / count).unbind(0))
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
