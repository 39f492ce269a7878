"""How many members of a stack fit in memory."""

from collections.abc import Sequence

import psutil
import torch
from torch import Tensor, nn

from trainability.introspect.hooks import Place
from trainability.stack.module import Stack

# Weights, gradients and two moments of an optimizer such as Adam.
_COPIES = 4
# A process grows by 2.7 to 3.2 times what a step keeps, as measured on stacks of 6 to 64 networks of several kinds:
# what is in passage, and the gaps that the allocator leaves.
_GROWTH = 3.3


def bytes_per_member(model: nn.Module, inputs: Tensor, taps: Sequence[str | Place] = (), *, shares: int = 1) -> int:
    """Memory that one network takes in training on inputs ``(B, ...)``: weights, optimizer and kept activations.

    Of the weights and the optimizer's state a process may keep one of several ``shares``.
    """
    stack = Stack([model], taps=taps)
    try:
        kept = stack.prepare(inputs.unsqueeze(0))
        return int(_GROWTH * (least_bytes(model) // shares + kept + inputs.numel() * inputs.element_size()))
    finally:
        stack.remove()


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def members_that_fit(per_member: int, device: torch.device) -> int:
    """How many networks of this size fit into what is free."""
    return free_bytes(device) // max(1, per_member)


def least_bytes(model: nn.Module) -> int:
    """Memory that a network takes at the very least, which a model on the meta device tells too."""
    return _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())
