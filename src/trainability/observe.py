"""Looking at a model without changing it: calling it, and putting back whatever a forward pass touches."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentTypeError, UnsupportedModelError
from trainability.taps import pausing


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model: a tensor means ``model(x)``, a tuple or list ``model(*x)``, a mapping ``model(**x)``."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, list | tuple):
        return model(*inputs)
    return model(inputs)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module inside `torch.compile` and DistributedDataParallel, if it is one to work with."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError("", "a ScriptModule takes no hooks; use the module that it was made from")
    for path, module in model.named_modules():
        if any(nn.parameter.is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            raise UnsupportedModelError(path, "it is lazily initialised; run the model once on a batch first")
    return model


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Within it, forward and backward passes leave no trace: buffers, attributes and random state are put back.

    The model works on copies of its buffers, so that a backward pass that still waits finds its own unchanged. Taps
    that others have on the model are paused, so that an LBE does not take the pass for one of training. Gradients are
    left alone by calling `torch.autograd.grad` instead of ``backward``. The random state is that of torch, of Python,
    and of NumPy where it is loaded.
    """
    # What forward sets on a module, such as a count, is put back too; the dictionaries among it are handled below.
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [(module, dict(module._buffers), set(module._non_persistent_buffers_set)) for module in model.modules()]
    copies: dict[int, Tensor] = {}
    devices = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=devices), pausing(model):
        try:
            for module, own, _ in buffers:
                for name, buffer in own.items():
                    if buffer is not None:  # a buffer that several modules share stays one
                        module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            yield
        finally:
            for module, own_attributes in attributes:
                vars(module).clear()
                vars(module).update(own_attributes)
            for module, own, passing in buffers:
                module._buffers.clear()
                module._buffers.update(own)
                module._non_persistent_buffers_set = passing
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
