"""The memory that members of a stack take, and the number of them that fits."""

from collections.abc import Sequence
from contextlib import nullcontext

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainability.introspect.hooks import Place, Taps, tensors_in
from trainability.introspect.run import call, observing, unwrap
from trainability.stack.collector import Collector
from trainability.stack.inputs import Inputs
from trainability.stack.members import Turn

# Weights, gradients and two moments of an optimizer such as Adam.
_COPIES = 4
# A process grows by 2.7 to 3.2 times what a step keeps, as measured on stacks of 6 to 64 networks of several kinds:
# what is in passage, and the gaps that the allocator leaves.
_GROWTH = 3.3


def bytes_per_member(model: nn.Module, inputs: Inputs, taps: Sequence[str | Place] = (), *, shares: int = 1) -> int:
    """Memory that one network takes in training on inputs ``(B, ...)``: weights, optimizer and kept activations.

    Of the weights and the optimizer's state a process may keep one of several ``shares``.
    """
    model = unwrap(model, hooked=bool(taps))
    given = sum(t.numel() * t.element_size() for t in tensors_in(inputs))
    return int(_GROWTH * (least_bytes(model) // shares + _kept_bytes(model, inputs, taps) + given))


def _kept_bytes(model: nn.Module, inputs: Inputs, taps: Sequence[str | Place]) -> int:
    """Memory of what a pass keeps for the backward pass, without the parameters."""
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    collector = Collector("position", Turn("alone"))
    with observing(model), torch.enable_grad(), saved_tensors_hooks(note, lambda t: t):
        model.train()
        with Taps(model, taps, collector) if taps else nullcontext(), collector.learning():
            call(model, inputs)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def members_that_fit(per_member: int, device: torch.device) -> int:
    """The number of networks of this size that fit into what is free."""
    return free_bytes(device) // max(1, per_member)


def least_bytes(model: nn.Module) -> int:
    """Memory that a network takes at the very least, which a model on the meta device tells too."""
    return _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())
