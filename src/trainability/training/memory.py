"""How many members of a stack fit in memory."""

import psutil
import torch
from torch import Tensor, nn

from trainability.training.stack import Stack

# Weights, gradients and two moments of an optimiser such as Adam.
_COPIES = 4
# Of the free memory: the rest is for the allocator's gaps and for what else runs.
_SHARE = 0.9


def bytes_per_member(model: nn.Module, inputs: Tensor, taps: tuple[str, ...] = ()) -> int:
    """Memory that one network takes in training on inputs ``(B, ...)``: weights, optimiser and kept activations."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    stack = Stack([model], taps=taps)
    try:
        return _COPIES * weights + stack.prepare(inputs.unsqueeze(0)) + inputs.numel() * inputs.element_size()
    finally:
        stack.remove()


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def members_that_fit(per_member: int, device: torch.device) -> int:
    """How many networks of this size fit into what is free."""
    return int(_SHARE * free_bytes(device) / max(1, per_member))
