"""The loss with the LBE term as a function of variances: its value and its gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainability.moments import transformed


class RegularizedLoss(torch.autograd.Function):
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


def regularized_loss(
    loss: Tensor,
    mean_loss: Tensor,
    alpha: Tensor,
    beta: float,
    alpha_min: float,
    halved: bool,
    scales: list[float | Tensor],
    *variances: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`RegularizedLoss` for one network; within torch.func by operations of torch, which can be transformed."""
    if not any(map(transformed, (loss, alpha, *variances))):
        found: tuple[Tensor, Tensor, Tensor] = RegularizedLoss.apply(
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
