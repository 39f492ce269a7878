"""Checking, when a model first trains, what an LBE chose to read without running it."""

import inspect
from typing import Any

import torch
from torch import nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.hooks import Taps
from trainability.introspect.select import DID_NOT_RUN, Selection, select


class FirstPassCheck:
    """A hook that checks in the first training pass that what was chosen without running the model holds."""

    def __init__(self, model: nn.Module, selection: Selection, taps: Taps) -> None:
        self.paths = set(selection.paths)
        self.taps = taps
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check, and leave the model, where it trains."""
        if torch.compiler.is_compiling() or self.taps.paused or not model.training:
            return
        names = list(inspect.signature(model.forward).parameters)
        found = select(model, inputs={**dict(zip(names, args, strict=False)), **kwargs} if kwargs else args)
        found.check_complete()
        idle = {name for name, reason in found.skipped.items() if reason == DID_NOT_RUN}
        differ = sorted((self.paths ^ set(found.paths)) - idle)
        if differ:
            raise UnsupportedModelError(
                "",
                "LBE, made without inputs, chose other readings than those that it finds now that the model runs; they "
                f"differ in {', '.join(differ[:5])}; make it with LBE(model, inputs=x)",
                code="inputs-needed",
            )
        self.handle.remove()
