"""Putting modules in the place of functions and additions that a module's own ``forward`` calls."""

import copy
import inspect
import warnings
from dataclasses import dataclass
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.run import call, observing
from trainability.introspect.torch_private import (
    MADE_BY_TRACING,
    PH,
    CodeGen,
    packing_of,
    swap_hooks,
    tree_leaves,
    tree_map,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)


class _OwnForward(fx.Tracer):
    """Traces what a module does itself; its submodules are called and not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class RewrittenForward:
    """The ``forward`` of one module, with modules in the place of some of its calls.

    It stands in the instance, so that the module keeps its class, and holds one version for training and one for
    evaluation, since what ``forward`` does may depend on the mode.
    """

    def __init__(self, module: nn.Module, traced: "Traced") -> None:
        self.module = module
        self.output = traced.output
        code = {mode: graph.python_code("self") for mode, graph in traced.graphs.items()}
        self.sources = {mode: (c.src, dict(c.globals)) for mode, c in code.items()}
        self.functions = {mode: _compiled(*source) for mode, source in self.sources.items()}
        self.arguments = _arguments(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the version for the module's mode."""
        if kwargs or len(args) < len(self.arguments):  # the versions name their arguments in their own way
            given = inspect.Signature(list(self.arguments)).bind(*args, **kwargs)
            given.apply_defaults()
            args = tuple(given.arguments.values())
        function = self.functions[self.module.training]
        if self.output is None:
            return function(self.module, *args)
        return tree_unflatten(function(self.module, *tree_leaves(args)), treespec_loads(self.output))

    @property
    def __code__(self) -> CodeType:
        """The code object, for which torch's tracing asks."""
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
        return {"module": self.module, "sources": sources, "arguments": self.arguments, "output": self.output}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.module, self.arguments, self.output = state["module"], state["arguments"], state["output"]
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


@dataclass(frozen=True)
class Traced:
    """The operations that a ``forward`` calls itself.

    Attributes:
        graphs: in training (True) and at evaluation.
        constants: tensors that it makes, by the names under which the graphs take them.
        output: the structure of its output, where it takes lists or dictionaries of tensors; the graphs take and
            give those one by one.
    """

    graphs: dict[bool, fx.Graph]
    constants: dict[str, Tensor]
    output: str | None


def trace(model: nn.Module, path: str, inputs: Any) -> Traced:
    """The operations that the ``forward`` of the module at ``path`` calls itself, in training and at evaluation.

    Arguments that are not tensors, nor hold any, are taken as they are in one call of the model.

    Raises:
        UnsupportedModelError: it cannot be traced, or the trace computes something else.
    """
    module = model.get_submodule(path)
    _check_forward(path, module)
    args, kwargs, output = _one_call(model, module, path, inputs)
    given = inspect.Signature(list(_arguments(module))).bind(*args, **kwargs)
    given.apply_defaults()
    fixed = {key: _with_places(value) for key, value in given.arguments.items() if not isinstance(value, Tensor)}
    graphs: dict[bool, fx.Graph] = {}
    before = dict(vars(module))
    try:
        for mode in (True, False):
            with observing(model), warnings.catch_warnings():
                module.training = mode
                warnings.simplefilter("ignore")  # of arguments that the trace takes as they are, which is meant
                graphs[mode] = _OwnForward().trace(module, concrete_args=fixed or None)
                made_now = {name: value for name, value in vars(module).items() if name not in before}
            vars(module).update(made_now)  # for the trial below
        made = {name: value for name, value in vars(module).items() if name not in before}
        if others := sorted(name for name in made if not name.startswith(MADE_BY_TRACING)):
            raise UnsupportedModelError(
                path,
                f"its forward sets attributes ({', '.join(others)}), which a rewritten one would not",
                code="forward-sets-attributes",
            )
        traced = Traced(graphs, made, _taken_apart(graphs))
        with observing(model), torch.no_grad():
            model.eval()
            again = RewrittenForward(module, traced)(*args, **kwargs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # tracing runs the module's own code on proxies, which may fail in any way
        text = str(error).strip().partition("\n")[0]
        raise UnsupportedModelError(
            path,
            f"its forward calls activations or adds branches, and cannot be rewritten ({text}); make these "
            "modules of their own, such as nn.ReLU() for F.relu",
            code="forward-not-traceable",
        ) from error
    finally:
        vars(module).clear()
        vars(module).update(before)
    pairs = zip(_tensors(output), _tensors(again), strict=False)
    if not all(a.is_meta or torch.allclose(a, b, equal_nan=True) for a, b in pairs):
        raise UnsupportedModelError(
            path,
            "its forward, when traced, computes something else; it cannot be rewritten",
            code="forward-not-traceable",
        )
    return traced


def _with_places(value: Any) -> Any:
    """An argument with a place for each tensor in it."""
    return tree_map(lambda leaf: PH if isinstance(leaf, Tensor) else leaf, value)


def _taken_apart(graphs: dict[bool, fx.Graph]) -> str | None:
    """Make graphs take tensors one by one that the tracer packs and unpacks; the structure of their output."""
    structure = None
    for graph in graphs.values():
        if (info := packing_of(graph)) is not None:
            structure = treespec_dumps(info.out_spec)
            graph.set_codegen(CodeGen())
    return structure


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


_CONTEXTS = {"no_grad", "enable_grad", "set_grad_enabled", "inference_mode", "autocast", "checkpoint"}


def _check_forward(path: str, module: nn.Module) -> None:
    if "forward" in vars(module):
        raise UnsupportedModelError(
            path, "its forward has been replaced already; undo that first", code="forward-replaced"
        )
    if found := _CONTEXTS & set(type(module).forward.__code__.co_names):
        raise UnsupportedModelError(
            path,
            f"its forward runs under {', '.join(sorted(found))}, which a rewritten one would not; make its "
            "activations and additions modules of their own",
            code="forward-under-a-context",
        )
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in _arguments(module)):
        raise UnsupportedModelError(
            path,
            "its forward takes *args or **kwargs and cannot be rewritten; make its activations and additions modules",
            code="forward-takes-any-arguments",
        )


def replace_module(model: nn.Module, module: nn.Module, substitute: nn.Module) -> None:
    """Put a module in the place of another, under every name that it has, with all hooks on it."""
    substitute.train(module.training)
    swap_hooks(module, substitute)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = substitute
                if isinstance(parent, nn.TransformerEncoderLayer) and name == "activation":
                    parent.activation_relu_or_gelu = 0  # by which torch's fused path knows what it computes


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

    reading = module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)
    with reading[0], reading[1], observing(model), torch.no_grad():
        model.eval()
        call(model, inputs)
    if not returned:
        raise UnsupportedModelError(path, "it did not run on these inputs", code="did-not-run")
    return (*given[0], returned[0])


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
