"""State in Python that a pass may change, and that a recording of the pass would not change again."""

import random
import sys
from typing import Any

import torch
from torch import nn


def python_state(module: nn.Module, device: torch.device) -> dict[str, Any]:
    """Numbers and words that a module and those within it hold, and the random states of Python, NumPy and the CPU.

    The CPU's own is left out on the CPU.

    >>> counting = nn.Dropout(0.5)
    >>> counting.passes = 3
    >>> python_state(counting, torch.device("cpu"))["passes of Dropout"]
    3
    """
    plain = (bool, int, float, str, type(None))
    state: dict[str, Any] = {
        f"{name} of {path or type(own).__name__}": value
        for path, own in module.named_modules()
        for name, value in vars(own).items()
        if isinstance(value, plain)
    }
    state["the random state of Python"] = random.getstate()
    if numpy := sys.modules.get("numpy"):
        state["the random state of NumPy"] = str(numpy.random.get_state())
    if device.type != "cpu":
        state["the random state of the CPU"] = torch.default_generator.get_state().tolist()
    return state
