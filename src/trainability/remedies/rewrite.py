"""Putting modules in the place of functions and additions that a module's own ``forward`` calls."""

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainability.activations import called_activation
from trainability.errors import UnsupportedModelError
from trainability.observe import call, observing

# Functions that are activations where kernels are concerned, besides those of torch.nn.functional.
_FURTHER = {"erf": "erf", "atan": "atan", "arctan": "atan", "asinh": "asinh", "arcsinh": "asinh", "sin": "sin"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


class _OwnForward(fx.Tracer):
    """Traces what a module does itself; its submodules are called and not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class RewrittenForward:
    """The ``forward`` of one module, with modules in the place of some of its calls.

    It stands in the instance, so that the module keeps its class, and holds one version for training and one for
    evaluation, since what ``forward`` does may depend on the mode.
    """

    def __init__(self, module: nn.Module, graphs: Mapping[bool, fx.Graph]) -> None:
        self.module = module
        code = {mode: graph.python_code("self") for mode, graph in graphs.items()}
        self.sources = {mode: (c.src, dict(c.globals)) for mode, c in code.items()}
        self.functions = {mode: _compiled(*source) for mode, source in self.sources.items()}
        self.arguments = _arguments(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the version for the module's mode."""
        if kwargs or len(args) < len(self.arguments):  # the versions name their arguments in their own way
            given = inspect.Signature(list(self.arguments)).bind(*args, **kwargs)
            given.apply_defaults()
            args = tuple(given.arguments.values())
        return self.functions[self.module.training](self.module, *args)

    @property
    def __code__(self) -> CodeType:
        """What the tracing of torch asks of a ``forward``."""
        return self.functions[False].__code__

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of the module's ``forward``."""
        return inspect.Signature(list(self.arguments))

    def __deepcopy__(self, memo: dict[int, Any]) -> "RewrittenForward":
        twin = copy.copy(self)
        twin.module = memo.get(id(self.module), self.module)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        sources = {
            mode: (text, {k: _ModuleName(v.__name__) if isinstance(v, ModuleType) else v for k, v in names.items()})
            for mode, (text, names) in self.sources.items()
        }
        return {"module": self.module, "sources": sources, "arguments": self.arguments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.module, self.arguments = state["module"], state["arguments"]
        self.sources = {
            mode: (text, {k: import_module(v) if isinstance(v, _ModuleName) else v for k, v in names.items()})
            for mode, (text, names) in state["sources"].items()
        }
        self.functions = {mode: _compiled(*source) for mode, source in self.sources.items()}


def _arguments(module: nn.Module) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(type(module).forward).parameters.values())[1:]


class _ModuleName(str):
    """Stands for a Python module in a pickle."""


def _compiled(source: str, names: dict[str, Any]) -> FunctionType:
    space = dict(names)
    exec(compile(source, "<rewritten forward>", "exec"), space)
    function: FunctionType = space["forward"]
    return function


def trace(model: nn.Module, path: str, inputs: Any) -> dict[bool, fx.Graph]:
    """What the ``forward`` of the module at ``path`` does itself, in training and at evaluation.

    Arguments that are not tensors are taken as they are in one call of the model.

    Raises:
        UnsupportedModelError: it cannot be traced, or the trace computes something else.
    """
    module = model.get_submodule(path)
    _check_forward(path, module)
    args, kwargs, output = _one_call(model, module, path, inputs)
    given = inspect.Signature(list(_arguments(module))).bind(*args, **kwargs)
    given.apply_defaults()
    fixed = {key: value for key, value in given.arguments.items() if not isinstance(value, Tensor)}
    graphs = {}
    before = dict(vars(module))
    try:
        for mode in (True, False):
            module.training = mode
            graphs[mode] = _OwnForward().trace(module, concrete_args=fixed or None)
        made = sorted(set(vars(module)) - set(before))
        if made:
            raise UnsupportedModelError(
                path, f"its forward sets attributes or makes tensors ({', '.join(made)}); a rewritten one would not"
            )
        with observing(model), torch.no_grad():
            model.eval()
            again = RewrittenForward(module, graphs)(*args, **kwargs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # tracing runs the module's own code on proxies, which may fail in any way
        text = str(error).strip().partition("\n")[0]
        raise UnsupportedModelError(
            path,
            f"its forward calls activations or adds branches, and cannot be rewritten ({text}); make these "
            "modules of their own, such as nn.ReLU() for F.relu",
        ) from error
    finally:
        vars(module).clear()
        vars(module).update(before)
    if isinstance(output, Tensor) and not (isinstance(again, Tensor) and torch.allclose(again, output, equal_nan=True)):
        raise UnsupportedModelError(path, "its forward, when traced, computes something else; it cannot be rewritten")
    counts = {mode: (len(activation_calls(graph)), len(additions(graph))) for mode, graph in graphs.items()}
    if counts[True] != counts[False]:
        raise UnsupportedModelError(
            path, "its forward calls other activations or additions in training than at evaluation; give each a module"
        )
    return graphs


_CONTEXTS = {"no_grad", "enable_grad", "set_grad_enabled", "inference_mode", "autocast", "checkpoint"}


def _check_forward(path: str, module: nn.Module) -> None:
    if "forward" in vars(module):
        raise UnsupportedModelError(path, "its forward has been replaced already; undo that first")
    if found := _CONTEXTS & set(type(module).forward.__code__.co_names):
        raise UnsupportedModelError(
            path,
            f"its forward works under {', '.join(sorted(found))}, which a rewritten one would not; make its "
            "activations and additions modules of their own",
        )
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in _arguments(module)):
        raise UnsupportedModelError(
            path,
            "its forward takes *args or **kwargs and cannot be rewritten; make its activations and additions modules",
        )


def activation_calls(graph: fx.Graph) -> list[tuple[fx.Node, str]]:
    """Calls of activations as functions, with the name of each."""
    found = []
    for node in graph.nodes:
        name = called_activation(node) if node.op in ("call_function", "call_method") else None
        if name is None and node.op == "call_function":
            name = _FURTHER.get(getattr(node.target, "__name__", ""))
        elif name is None and node.op == "call_method":
            name = _FURTHER.get(str(node.target).rstrip("_"))
        if name is not None:
            found.append((node, name))
    return found


def additions(graph: fx.Graph) -> list[fx.Node]:
    """Additions of two values that are not parameters or constants."""
    found = []
    for node in graph.nodes:
        adds = node.target in _ADDITIONS or (node.op == "call_method" and node.target in ("add", "add_"))
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a.op != "get_attr"]
        if adds and len(operands) == 2:
            found.append(node)
    return found


def replace_call(graph: fx.Graph, path: str, node: fx.Node, name: str, operands: tuple[Any, ...]) -> None:
    """Call the submodule ``name`` in place of a node."""
    if not node.users:
        raise UnsupportedModelError(
            path, f"{node.target} works in place and its result is not used; use what it returns instead"
        )
    with graph.inserting_after(node):
        substitute = graph.call_module(name, operands)
    node.replace_all_uses_with(substitute)
    graph.erase_node(node)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def replace_module(model: nn.Module, module: nn.Module, substitute: nn.Module) -> None:
    """Put a module in the place of another, under every name that it has, with all hooks on it."""
    substitute.train(module.training)
    # The dictionaries themselves change places: handles know them, and undoing gives the module back those that it had.
    for name in _HOOKS:
        vars(module)[name], vars(substitute)[name] = vars(substitute)[name], vars(module)[name]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = substitute
                if isinstance(parent, nn.TransformerEncoderLayer) and name == "activation":
                    parent.activation_relu_or_gelu = 0  # by which torch's fused path knows what it computes


def function_of(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The function that a node calls, with its other arguments, out of place."""
    keywords = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return _Called(getattr(Tensor, name.rstrip("_")), node.args[1:], keywords)
    target = getattr(torch, name[:-1]) if name.endswith("_") else node.target
    assert callable(target)
    return _Called(target, node.args[1:], keywords) if len(node.args) > 1 or keywords else target


class _Called:
    """A function with the arguments that come after its first."""

    def __init__(self, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.kwargs)


def _one_call(
    model: nn.Module, module: nn.Module, path: str, inputs: Any
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments and output of the module in the first call of it, copied before anything can overwrite them."""
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    returned: list[Any] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((tuple(map(_copied, args)), {key: _copied(value) for key, value in kwargs.items()}))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        returned.append(_copied(output))

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        with observing(model), torch.no_grad():
            model.eval()
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not returned:
        raise UnsupportedModelError(path, "it did not run on these inputs")
    return (*given[0], returned[0])


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
