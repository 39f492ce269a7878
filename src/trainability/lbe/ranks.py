"""Statistics of layers over the samples of all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainability.lbe.statistics import BatchStatistics


def several_ranks() -> bool:
    """Return True where several processes share the work."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def scaled_variances(
    runs: list[BatchStatistics], loss: Tensor, constant: float
) -> tuple[list[Tensor], list[float | Tensor], Tensor]:
    """Biased variances of runs, what makes c σ² of each with σ² unbiased, and the mean loss: over all ranks."""
    if several_ranks():
        variances, counts, loss = global_statistics(runs, loss)
        return variances, [constant * n / (n - 1) for n in counts], loss
    return [run.variance for run in runs], [constant * run.count / (run.count - 1) for run in runs], loss


def global_statistics(runs: list[BatchStatistics], loss: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Variance and sample count of every run over the samples of all ranks, and the mean loss, by one all-reduce.

    The loss is one, or one for each network of a stack.
    """
    sizes = [run.mean.numel() for run in runs]
    counts = [
        torch.full((size,), float(run.count), dtype=torch.float64, device=loss.device)
        for size, run in zip(sizes, runs, strict=True)
    ]
    variance, total, loss = _GlobalVariance.apply(
        torch.cat([run.mean.flatten().to(loss.device) for run in runs]),
        torch.cat([run.variance.flatten().to(loss.device) for run in runs]),
        torch.cat(counts),
        loss,
    )
    variances = [v.view_as(run.mean) for v, run in zip(variance.split(sizes), runs, strict=True)]
    return variances, [t[0] for t in total.split(sizes)], loss


class _GlobalVariance(torch.autograd.Function):
    """Biased variance over the samples of all ranks from each rank's mean and variance.

    Sums travel in float64, where the square of a mean does not swallow a small variance. The gradient is multiplied
    by the number of ranks, since gradients of parameters are averaged over them.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, count: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum over ranks in one collective."""
        m = mean.double()
        sums = torch.cat([count, count * m, count * (variance.double() + m * m), loss.double().view(-1)])
        dist.all_reduce(sums)
        total, first, second = sums[: -loss.numel()].view(3, -1)
        world = dist.get_world_size()
        global_mean = first / total
        global_variance = (second / total - global_mean * global_mean).clamp_(min=0)
        ctx.save_for_backward(m - global_mean, count / total)
        ctx.world = world
        ctx.mark_non_differentiable(total)
        return global_variance.to(variance.dtype), total, (sums[-loss.numel() :] / world).to(loss.dtype).view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _total: Any, _loss: Any) -> Any:
        """Return the gradient for this rank's mean and variance."""
        offset, share = ctx.saved_tensors
        weighted = grad.double() * share * ctx.world
        return (2 * weighted * offset).to(grad.dtype), weighted.to(grad.dtype), None, None
