"""Looking at a model without changing it: calling it, and putting back whatever a forward pass touches."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentTypeError, UnsupportedModelError
from trainability.introspect.hooks import pausing
from trainability.introspect.snapshot import Snapshot, guard_of
from trainability.introspect.torch_private import uncompiled


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model: a tensor means ``model(x)``, a tuple or list ``model(*x)``, a mapping ``model(**x)``."""
    positional, by_name = arguments(inputs)
    return model(*positional, **by_name)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments by position and by name that inputs stand for.

    >>> arguments([1, 2]), arguments({"x": 1})
    (((1, 2), {}), ((), {'x': 1}))
    """
    if isinstance(inputs, Mapping):
        if others := [key for key in inputs if not isinstance(key, str)]:
            raise ArgumentTypeError(
                f"inputs={{...}} means model(**inputs), so its keys are names of arguments, not {others[0]!r}",
                code="wrong-type",
            )
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def unwrap(model: nn.Module, *, hooked: bool = True) -> nn.Module:
    """Return the user's own module inside `torch.compile` and DistributedDataParallel, if it is one to work with.

    One that torch.jit has made serves only where it will not be ``hooked``.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}", code="not-a-module")
    while True:
        if (inner := uncompiled(model)) is not None:
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            break
    if hooked and isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "", "a ScriptModule takes no hooks; use the module that it was made from", code="scripted"
        )
    _check_tree(model, "", [], set())
    for path, module in model.named_modules():
        if any(nn.parameter.is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            raise UnsupportedModelError(
                path, "it is lazily initialized; run the model once on a batch first", code="lazy"
            )
    return model


def _check_tree(module: nn.Module, path: str, above: list[nn.Module], done: set[int]) -> None:
    """Raise UnsupportedModelError for a module within itself, which torch's own ``train()`` could not end at either."""
    if any(module is other for other in above):
        raise UnsupportedModelError(path, "it contains itself, directly or further down", code="in-itself")
    if id(module) in done:
        return
    for name, child in module._modules.items():
        if child is not None:
            _check_tree(child, f"{path}.{name}".lstrip("."), [*above, module], done)
    done.add(id(module))


@contextmanager
def observing(model: nn.Module, *, guard: bool = True) -> Iterator[None]:
    """Within it, forward and backward passes leave no trace on a model, nor on the random state.

    Put back to the bit are its modules, hooks and attributes, what these hold in lists and dictionaries, and the values
    of parameters, buffers, gradients and other tensors. The model works on copies of its buffers; any other tensor is
    copied where an operation is about to write to it (`trainability.introspect.snapshot.Guard`), so that a pass which
    changes no parameter takes no further memory. Taps that others have on the model are paused, so that an LBE does
    not take the pass for one of training. The random state is that of torch, of Python, and of NumPy where it is
    loaded.

    Args:
        model: what is looked at.
        guard: False for who measures how long a pass takes, to which looking at every operation adds: parameters that
            the pass changes in place are then not put back.
    """
    before = Snapshot(model, unregistered=True)
    watch = guard_of(before.tensors if guard else [])
    random_state = RandomState(model)
    copies: dict[int, Tensor] = {}
    # What torch.jit has made keeps its state where a snapshot does not look.
    scripted = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    kept = [(module, module.training, dict(module._buffers.items())) for module in scripted]
    with pausing(model):
        try:
            for module in dict.fromkeys((*before.modules, *scripted)):
                for name, buffer in module._buffers.items():
                    if buffer is not None:  # a buffer that several modules share stays one
                        module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            with watch if guard else nullcontext():
                yield
        finally:
            _reshard(model)
            before.restore()
            for module, training, buffers in kept:
                module.training = training
                for name, buffer in buffers.items():
                    module._buffers[name] = buffer
            watch.restore()
            random_state.restore()


class RandomState:
    """The random state of torch, of Python, and of NumPy where it is loaded, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._python = random.getstate()
        self._numpy = (loaded, loaded.random.get_state()) if (loaded := sys.modules.get("numpy")) else None
        self._torch = torch.get_rng_state()
        devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore(self) -> None:
        """Put it back."""
        random.setstate(self._python)
        if self._numpy:
            module, state = self._numpy
            module.random.set_state(state)
        torch.set_rng_state(self._torch)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)


def _reshard(model: nn.Module) -> None:
    """Let modules whose weights are shared out (FSDP) hold their shares again, as what follows the pass expects."""
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()
