"""Telling nonlinearities and weight layers apart, and finding the activations a model calls as functions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode

from trainability.observe import call, observing

_NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
_NAMES = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
]
_FUNCTIONS: dict[Callable[..., Any], str] = {
    function: name
    for owner in (F, torch, Tensor)
    for name in _NAMES
    for function in (getattr(owner, name, None), getattr(owner, name + "_", None))
    if function is not None
}


def is_nonlinearity(module: nn.Module) -> bool:
    """Whether a module is an elementwise nonlinearity: torch's own, or a class from a module of activations."""
    if isinstance(module, _NOT_ELEMENTWISE):
        return False
    defined_in = {cls.__module__ for cls in type(module).__mro__}
    return activation.__name__ in defined_in or any(
        name.rpartition(".")[2] in ("activations", "activation") for name in defined_in - {activation.__name__}
    )


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix or kernel of its own (a Linear, a convolution, and their like)."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2


@dataclass
class ActivationCalls:
    """Activations called as functions in one pass of a model, and the modules whose output is the model's."""

    after_weight: dict[str, str] = field(default_factory=dict)  # weight layer -> function called after it
    orphans: dict[str, str] = field(default_factory=dict)  # calling module -> function, no weight layer before
    outputs: set[str] = field(default_factory=set)

    def add(self, function: str, weight: str | None, caller: str) -> None:
        """Record one call: it belongs to the weight layer that ran last before it."""
        if weight is None:
            self.orphans[caller or "the model"] = function
        else:
            self.after_weight[weight] = function


def find_activation_calls(model: nn.Module, inputs: Any = None) -> ActivationCalls | None:
    """Find them by running the model once on ``inputs``, or by symbolic tracing; ``None`` where that fails."""
    return _by_tracing(model) if inputs is None else _by_running(model, inputs)


class _Watch(TorchFunctionMode):
    """Follows which module is running, and records activation functions called outside nonlinearity modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls = ActivationCalls()
        self.stack: list[tuple[str, nn.Module]] = [("", model)]
        self.weight: str | None = None
        self.last: dict[str, Any] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        path, module = self.stack[-1]
        if func in _FUNCTIONS and not is_nonlinearity(module):
            self.calls.add(_FUNCTIONS[func], self.weight, path)
        return func(*args, **(kwargs or {}))

    def enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any) -> None:
            self.stack.append((path, module))

        return hook

    def leave(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            self.stack.pop()
            self.last[path] = output
            if is_weight_layer(module):
                self.weight = path

        return hook


def _by_running(model: nn.Module, inputs: Any) -> ActivationCalls:
    watch = _Watch(model)
    handles = []
    try:
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(watch.enter(path)))
                handles.append(module.register_forward_hook(watch.leave(path)))
        with observing(model), torch.no_grad(), watch:
            output = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    watch.calls.outputs = {path for path, value in watch.last.items() if value is output}
    return watch.calls


def _by_tracing(model: nn.Module) -> ActivationCalls | None:
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # tracing runs the model's own code on proxies, which may fail in any way
        return None
    modules = dict(model.named_modules())
    calls = ActivationCalls()
    weight = None
    for node in graph.nodes:
        if node.op == "call_module" and is_weight_layer(modules[str(node.target)]):
            weight = str(node.target)
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            calls.add(_FUNCTIONS[node.target], weight, "")
        elif node.op == "call_method" and str(node.target).rstrip("_") in _NAMES:
            calls.add(str(node.target).rstrip("_"), weight, "")
        elif node.op == "output" and isinstance(node.args[0], fx.Node) and node.args[0].op == "call_module":
            calls.outputs.add(str(node.args[0].target))
    return calls
