"""What a model, and the process around it, is: to the bit, so that a trace that is left can be named."""

import random
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .core import Fault


def picture(model: nn.Module) -> dict[tuple[str, ...], Any]:
    """Everything of a model that can be told apart, by what it belongs to."""
    found: dict[tuple[str, ...], Any] = {}
    for path, module in model.named_modules():
        found[path, "class"] = type(module)
        found[path, "mode"] = module.training
        for name, value in vars(module).items():
            if name != "training":
                found[path, "attribute", name] = _shallow(value)
        for sort, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    gradient = None if tensor.grad is None else (id(tensor.grad), *_bits(tensor.grad))
                    found[f"{path}.{name}", sort] = (id(tensor), tensor.requires_grad, *_bits(tensor))
                    found[f"{path}.{name}", "gradient"] = gradient
    return found


def world() -> dict[tuple[str, ...], Any]:
    """What belongs to the process: random states, and what torch does everywhere."""
    numbers = np.random.get_state()
    return {
        ("torch", "random state"): torch.get_rng_state().numpy().tobytes(),
        ("python", "random state"): random.getstate(),
        ("numpy", "random state"): (numbers[0], numbers[1].tobytes(), *numbers[2:]),
        ("torch", "gradients on"): torch.is_grad_enabled(),
        ("torch", "default dtype"): torch.get_default_dtype(),
        ("torch", "threads"): torch.get_num_threads(),
        ("torch", "global hooks"): [
            len(getattr(nn.modules.module, name))
            for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
        ],
        ("torch", "function modes"): torch._C._len_torch_function_stack(),
        ("torch", "dispatch modes"): torch._C._len_torch_dispatch_stack(),
        ("python", "recursion limit"): sys.getrecursionlimit(),
    }


def check(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any], when: str) -> None:
    """Raise `Fault` where two pictures differ."""
    for key in _differing(before, after):
        where, *what = key
        change = "changed" if key in before and key in after else "left" if key in after else "lost"
        raise Fault(
            "trace",
            f"{when}: {' '.join(what)} {change} ({where if where in ('torch', 'python', 'numpy') else 'model'})",
        )


def _differing(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any]) -> Iterator[tuple[str, ...]]:
    for key in (*before, *after):
        if key not in after or key not in before or before[key] != after[key]:
            yield key


def _shallow(value: Any) -> Any:
    """An attribute: which object it is, and what a container holds."""
    if isinstance(value, dict):
        return id(value), [(key, id(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return id(value), [id(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return value if isinstance(value, int | float | str | bool | None) else id(value)


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.device.type == "meta" or nn.parameter.is_lazy(tensor):
        return tensor.dtype, str(tensor.device)
    plain = tensor.detach().contiguous()
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), plain.flatten().view(torch.uint8).numpy().tobytes()
