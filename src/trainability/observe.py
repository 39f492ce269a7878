"""Looking at a model without changing it: calling it, and putting back whatever a forward pass touches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model: a tensor means ``model(x)``, a tuple or list ``model(*x)``, a mapping ``model(**x)``."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, list | tuple):
        return model(*inputs)
    return model(inputs)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module inside `torch.compile` and DistributedDataParallel."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, tuple, list, mapping or dataclass, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Within it, forward and backward passes leave no trace: buffers, modes and random state are put back.

    Gradients are left alone by calling `torch.autograd.grad` instead of ``backward``.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module._buffers, name, b) for module in model.modules() for name, b in module._buffers.items()]
    copies = {id(b): b.detach().clone() for _, _, b in buffers if b is not None}
    devices = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for owner, name, buffer in buffers:
                owner[name] = buffer
                if buffer is not None and not _same_bits(buffer, copies[id(buffer)]):
                    with torch.no_grad():
                        buffer.copy_(copies[id(buffer)])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(
        torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
    )
