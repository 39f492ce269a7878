"""Putting a network to the test: does its gradient depend on which label belongs to which input?"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError
from trainability.introspect.run import call, observing


def label_dependence(
    model: nn.Module, inputs: Any, targets: Tensor, loss: Callable[[Any, Any], Tensor], permutations: int = 3
) -> float:
    """The dependence of the gradient of the weights on which label belongs to which input.

    The root mean square over permutations of |g(y) − g(permuted y)| / |g(y)|, over all weight matrices. 0: the
    gradient sees only how often each class occurs. About 1 and more: the labels matter.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 2
    >>> label_dependence(nn.Linear(8, 2), x, y, nn.functional.cross_entropy) > 0.5
    True
    """
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) < 2:
        raise ArgumentError(
            "targets must be a tensor with one label per sample along dimension 0, of two samples or more, to permute",
            code="labels-not-permutable",
        )
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    if not weights:
        raise ArgumentError("no weight matrix requires a gradient; the model is frozen", code="model-frozen")

    def gradient(labels: Tensor) -> Tensor:
        # The random state is put back each time, so dropout is the same for all labels.
        with observing(model), torch.enable_grad():
            value = loss(call(model, inputs), labels)
            parts = torch.autograd.grad(value, weights, allow_unused=True)
        return torch.cat([g.double().flatten() for g in parts if g is not None])

    generator = torch.Generator().manual_seed(0)
    true = gradient(targets)
    size = true.norm().item()
    if not math.isfinite(size) or size == 0:
        raise ArgumentError(
            f"the gradient has norm {size}, so whether it depends on the labels cannot be told",
            code="gradient-zero-or-not-finite",
        )
    squares = []
    for _ in range(permutations):
        order = torch.randperm(len(targets), generator=generator).to(targets.device)
        squares.append(((gradient(targets[order]) - true).norm().item() / size) ** 2)
    return math.sqrt(sum(squares) / len(squares))
