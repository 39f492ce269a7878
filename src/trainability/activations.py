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
    if isinstance(module, _NOT_ELEMENTWISE) or any(True for _ in module.children()):
        return False
    if any(parameter.dim() >= 2 for parameter in module.parameters()):
        return False
    defined_in = {cls.__module__ for cls in type(module).__mro__}
    return activation.__name__ in defined_in or any(
        name.rpartition(".")[2] in ("activations", "activation") for name in defined_in
    )


def fan_in(module: nn.Module) -> int | None:
    """How many inputs meet in one output of a weight layer; None where that cannot be read off its weight."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() < 2 or isinstance(module, nn.modules.conv._ConvTransposeNd):
        return None
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return weight.shape[1:].numel()
    return weight.shape[0] if hasattr(module, "nf") else None  # transformers' Conv1D keeps its weight as (in, out)


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix or kernel of its own (a Linear, a convolution, and their like)."""
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):  # whatever a remedy has put into it
        return True
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2


@dataclass
class ActivationCalls:
    """Activations called as functions in one pass of a model, and what the pass showed of its modules."""

    at: dict[str, str] = field(default_factory=dict)  # module to read -> what its output is to the function
    orphans: dict[str, str] = field(default_factory=dict)  # calling module -> function without a weight layer before
    outputs: dict[str, str] = field(default_factory=dict)  # module -> why it is not hidden
    idle: set[str] = field(default_factory=set)  # modules that did not run
    opaque: set[str] = field(default_factory=set)  # modules that were not looked into
    callers: set[str] = field(default_factory=set)  # modules whose forward makes the calls, if it was run

    def add(self, function: str, at: str | None, caller: str, how: str) -> None:
        """Record one call, to be read at module ``at``."""
        if at is None:
            self.orphans[caller or "the model"] = f"{function} is called there, but after no weight layer"
        else:
            self.at[at] = f"{how} {function}, which is called as a function and has no module to tap"

    def final(self, function: str, at: str | None) -> None:
        """Record a call that made the model's output."""
        if at is not None:
            self.outputs[at] = f"the {function} after it is the output of the model"


def find_activation_calls(model: nn.Module, inputs: Any = None) -> ActivationCalls | None:
    """Find them by running the model once on ``inputs``, or by symbolic tracing; ``None`` where that fails."""
    return _by_tracing(model) if inputs is None else _by_running(model, inputs)


@dataclass
class _Call:
    function: str
    argument: Any
    result: Any
    caller: str
    weight: str | None  # the weight layer that ran last before it


class _Watch(TorchFunctionMode):
    """Follows which module is running, and records activation functions called outside nonlinearity modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.stack: list[tuple[str, nn.Module]] = [("", model)]
        self.weight: str | None = None
        self.returned: dict[str, Any] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        path, module = self.stack[-1]
        if func in _FUNCTIONS and args and not is_nonlinearity(module):
            self.calls.append(_Call(_FUNCTIONS[func], args[0], result, path, self.weight))
        return result

    def enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any) -> None:
            self.stack.append((path, module))

        return hook

    def leave(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            self.stack.pop()
            self.returned[path] = output
            if is_weight_layer(module):
                self.weight = path

        return hook

    def account(self, model: nn.Module, output: Any) -> ActivationCalls:
        """Say where each call can be read.

        Best is a module that returns the function's result; then one that returned its argument, such as a
        normalisation; else the weight layer that ran last before it.
        """
        makers = {id(value): path for path, value in reversed(self.returned.items())}
        found = ActivationCalls(idle={path for path, _ in model.named_modules() if path and path not in self.returned})
        for call_ in self.calls:
            after = makers.get(id(call_.result)) if call_.result is not call_.argument else None
            before = makers.get(id(call_.argument))
            if call_.result is output:
                found.final(call_.function, before or call_.weight)
                continue
            found.callers.add(call_.caller)
            if after is not None:
                found.add(call_.function, after, call_.caller, "it returns the result of")
            elif before is not None:
                found.add(call_.function, before, call_.caller, "before")
            else:
                found.add(call_.function, call_.weight, call_.caller, "the last weight layer before")
        for path, value in self.returned.items():
            if value is output and is_nonlinearity(model.get_submodule(path)):
                found.outputs[path] = "its output is the output of the model, not a hidden layer"
        return found


def _by_running(model: nn.Module, inputs: Any) -> ActivationCalls:
    watch = _Watch(model)
    handles = []
    try:
        with observing(model), torch.no_grad(), watch:
            for path, module in model.named_modules():
                if path:
                    handles.append(module.register_forward_pre_hook(watch.enter(path)))
                    handles.append(module.register_forward_hook(watch.leave(path)))
            output = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watch.account(model, output)


def _by_tracing(model: nn.Module) -> ActivationCalls | None:
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # tracing runs the model's own code on proxies, which may fail in any way
        return None
    modules = dict(model.named_modules())
    calls = ActivationCalls()
    results = {id(node.args[0]) for node in graph.nodes if node.op == "output"}
    weight = None
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "call_module":
            if is_weight_layer(modules[path]):
                weight = path
            elif is_nonlinearity(modules[path]) and id(node) in results:
                calls.outputs[path] = "its output is the output of the model, not a hidden layer"
            elif any(True for _ in modules[path].children()):
                calls.opaque.add(path)
            continue
        function = called_activation(node)
        if function is None:
            continue
        source = node.args[0] if node.args else None
        before = str(source.target) if isinstance(source, fx.Node) and source.op == "call_module" else None
        if id(node) in results:
            calls.final(function, before or weight)
        else:
            calls.add(function, before or weight, "", "before" if before else "the last weight layer before")
    return calls


def called_activation(node: fx.Node) -> str | None:
    """Name of the activation that a traced node calls as a function; None where it calls something else."""
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target) if callable(node.target) else None
    name = str(node.target).rstrip("_")
    return name if node.op == "call_method" and name in _NAMES else None
