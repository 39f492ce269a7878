"""Independent statements of the formulas, in NumPy and in plain autograd, to test the package against."""

import math

import numpy as np
import torch
from torch import Tensor


def numpy_neuron_entropy(a: np.ndarray, constant: float = 2 * math.pi * math.e) -> np.ndarray:
    """Eq. 2: one half of log(c s² + 1), s² the unbiased variance over the batch."""
    variance = ((a - a.mean(axis=0)) ** 2).sum(axis=0) / (len(a) - 1)
    return 0.5 * np.log(constant * variance + 1)


def numpy_lbe(entropies: list[float], alphas: list[float], beta: float, alpha_min: float, loss: float) -> float:
    """Eq. 4 to 6."""
    terms = [(h - max(alpha_min, abs(a))) ** 2 for h, a in zip(entropies, alphas, strict=True)]
    return loss * (1 + beta / len(terms) * sum(terms))


def plain_entropy(a: Tensor, constant: float = 2 * math.pi * math.e) -> Tensor:
    """The same through autograd's own operations."""
    return 0.5 * torch.log(constant * a.flatten(1).var(dim=0) + 1).mean()


def plain_total(loss: Tensor, activations: list[Tensor], alpha: Tensor, beta: float, alpha_min: float) -> Tensor:
    entropy = torch.stack([plain_entropy(a) for a in activations])
    target = torch.maximum(alpha.abs(), torch.tensor(alpha_min, dtype=alpha.dtype))
    term = beta * ((entropy - target) ** 2).mean()
    return loss * (1 + term) if loss >= 0 else loss + loss.detach().abs() * term
