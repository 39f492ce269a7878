"""The LBE term as a function of variances: its value, its gradient, and its statistics over all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainability.lbe.statistics import BatchStatistics
from trainability.moments import transformed


class Total(torch.autograd.Function):
    """From variances ``(..., L_r, n_r)`` of runs of readings to ``loss + |loss| L_BE``, L_BE and the entropies.

    The leading dimensions are those of the loss: none for one network, ``(E,)`` for a stack of them, where ``beta``
    may be ``(E,)`` and ``alpha_min`` ``(E, 1)``. ``halved`` says whether max(alpha_min, |alpha|) has the slope ½ where
    both are equal, as `torch.maximum` has it, and not 1.

    Written by hand because these few numbers cost more calls than arithmetic. With s = c σ² per neuron,
    H = mean ½ log(1 + s), so dH/dσ² = c / (2 n (1 + s)); and d total = d loss (1 + L_BE) + |mean loss| d L_BE, the
    first being d loss alone where the loss is negative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        mean_loss: Tensor,
        alpha: Tensor,
        beta: float | Tensor,
        alpha_min: float | Tensor,
        halved: bool,
        scales: list[float | Tensor],
        *variances: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the total, L_BE and the entropies."""
        scaled = [v * scale for v, scale in zip(variances, scales, strict=True)]
        entropies = [torch.log1p(s).mean(-1).to(alpha) for s in scaled]
        entropy = (torch.cat(entropies, -1) if len(entropies) > 1 else entropies[0]).mul_(0.5)
        error = entropy - alpha.abs().clamp_(min=alpha_min)
        lbe = torch.linalg.vecdot(error, error) * (beta / error.shape[-1])
        ctx.save_for_backward(mean_loss, error, alpha, lbe, *scaled)
        ctx.settings = (beta, alpha_min, halved, scales)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lbe, entropy)
        weight = torch.where(mean_loss >= 0, loss, loss.abs())
        return loss + weight * lbe.to(loss), lbe, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _lbe: Any, _entropy: Any) -> Any:
        """Return the gradient for the loss, alpha and the variances."""
        mean_loss, error, alpha, lbe, *scaled = ctx.saved_tensors
        beta, alpha_min, halved, scales = ctx.settings
        by_entropy = error * (grad * mean_loss.abs() * (2 * beta / error.shape[-1])).unsqueeze(-1)
        size = alpha.abs()
        by_alpha = (by_entropy * alpha.sign()).mul_(size >= alpha_min).neg_()
        if halved:
            by_alpha -= 0.5 * by_alpha * (size == alpha_min)
        by_variance = [
            (g.to(s) * (scale / (2 * s.shape[-1]))).unsqueeze(-1) / (s + 1)
            for g, s, scale in zip(by_entropy.split([s.shape[-2] for s in scaled], -1), scaled, scales, strict=True)
        ]
        by_loss = grad * (1 + lbe.to(grad) * (mean_loss >= 0))
        return by_loss, None, by_alpha, None, None, None, None, *by_variance


def total_of(
    loss: Tensor,
    mean_loss: Tensor,
    alpha: Tensor,
    beta: float,
    alpha_min: float,
    halved: bool,
    scales: list[float | Tensor],
    *variances: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`Total` for one network; within torch.func by operations of torch, which can be transformed."""
    if not any(map(transformed, (loss, alpha, *variances))):
        found: tuple[Tensor, Tensor, Tensor] = Total.apply(
            loss, mean_loss, alpha, beta, alpha_min, halved, scales, *variances
        )
        return found
    entropies = [torch.log1p(v * scale).mean(-1) / 2 for v, scale in zip(variances, scales, strict=True)]
    entropy = torch.cat(entropies, -1).to(alpha)
    size, floor = alpha.abs(), torch.full_like(alpha, alpha_min)
    target = torch.maximum(size, floor) if halved else torch.where(size >= floor, size, floor)
    lbe = (entropy - target).square().mean(-1) * beta
    weight = torch.where(loss >= 0, loss, mean_loss.detach().abs())
    return loss + weight * lbe.to(loss), lbe, entropy


def over_ranks(runs: list[BatchStatistics], loss: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
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
