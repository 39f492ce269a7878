"""Finding the activations and sums that a traced ``forward`` computes itself, in however many operations."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from trainability.introspect.activation_table import VARYING
from trainability.introspect.activations import called_activation
from trainability.signal.activation import Activation, as_activation
from trainability.signal.folding import folded
from trainability.signal.graph import Node
from trainability.signal.operations import CASTS, ELEMENTWISE, LINEAR, leaves
from trainability.signal.tracker import IDENTITY, Signal, Stacked, Tracker, signals_in

# Other names of operations: of operators, and of torch.
_NAMES = {
    **{"truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub"},
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "negative": "neg", "absolute": "abs"},
}
_CASTS = CASTS | {"float", "double", "half", "bfloat16"}


def regions(module: nn.Module, graph: fx.Graph, constants: Mapping[str, Tensor]) -> list["Region"]:
    """Nonlinear layers and sums among what a traced forward does, in order.

    The rules are those by which a model is read (`trainability.signal.read`), so both find the same.
    """
    finder = _Finder(module, constants)
    for node in graph.nodes:
        finder.visit(node)
    nodes, _ = folded(finder.nodes, finder.ends)
    found = [node for node in nodes if node.kind in ("nonlinear", "sum")]
    return sorted((Region(node, tuple(nodes[i].at for i in node.inputs)) for node in found), key=lambda r: r.node.at)


@dataclass(frozen=True)
class Region:
    """A nonlinear layer or a sum, ``node.at`` being the traced node of its result, and the traced nodes it takes."""

    node: Node
    operands: tuple[fx.Node, ...]

    def replace(self, graph: fx.Graph, name: str, replaced: dict[fx.Node, fx.Node]) -> None:
        """Call the submodule ``name`` in place of it; ``replaced`` keeps what took the place of which result."""
        result: fx.Node = self.node.at
        inside = self._inside(replaced)
        with graph.inserting_after(result):
            substitute = graph.call_module(name, tuple(replaced.get(node, node) for node in self.operands))
        changed = {first for node in inside if is_in_place(node) and isinstance(first := node.args[0], fx.Node)}
        for node in [result, *changed]:
            later = [user for user in node.users if user > result and user is not substitute and user not in inside]
            for user in later:
                user.replace_input_with(node, substitute)
        replaced[result] = substitute
        for node in sorted(inside, reverse=True):
            if not node.users:
                graph.erase_node(node)

    def function(self, constants: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """The activation as a function that can be pickled; to be asked for before anything is replaced."""
        result: fx.Node = self.node.at
        if len(inside := self._inside({})) == 1 and result.args[:1] == self.operands:
            return called_function(result)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {self.operands[0]: graph.call_method("clone", (graph.placeholder("x"),))}
        root = nn.Module()
        for node in sorted(inside):
            if node.op == "get_attr":
                root.register_buffer(str(node.target), constants[str(node.target)])
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[result])
        return fx.GraphModule(root, graph)

    def _inside(self, replaced: dict[fx.Node, fx.Node]) -> set[fx.Node]:
        """The traced nodes between operands and result."""
        ends = {replaced.get(node, node) for node in self.operands}
        found: set[fx.Node] = set()
        open_ = [self.node.at]
        while open_:
            node = open_.pop()
            if node not in found and node not in ends and node.op != "placeholder":
                found.add(node)
                open_ += node.all_input_nodes
        return found


class _Finder(Tracker):
    def __init__(self, module: nn.Module, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module = module
        self.constants = constants
        self.values: dict[fx.Node, Any] = {}
        self.ends: list[int] = []

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = self.add("input", at=node)
        elif node.op == "get_attr":
            made = self.constants.get(str(node.target))
            self.values[node] = made if isinstance(made, Tensor) and made.numel() == 1 else _Held()
        elif node.op == "output":
            self.leave(fx.map_arg(node.args, self.values.__getitem__))
        else:
            self.call(node)

    def leave(self, values: Any) -> None:
        """Settle what is taken by something that does not work element by element."""
        self.ends += map(self.settle, signals_in(values))

    def call(self, node: fx.Node) -> None:
        args: Any = fx.map_arg(node.args, self.values.__getitem__)
        kwargs: Any = fx.map_arg({k: v for k, v in node.kwargs.items() if k != "inplace"}, self.values.__getitem__)
        raw = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        name = raw.rstrip("_") if not raw.startswith("_") else raw
        name = _NAMES.get(name, name)
        flat = leaves((args, kwargs))
        signals = signals_in(flat)
        value = None
        if node.op == "call_module":
            idle = type(self.module.get_submodule(str(node.target))) is nn.Identity
            value = signals[0] if idle and len(signals) == 1 else None
        elif signals and not any(isinstance(v, _Held) for v in flat):
            value = self.understood(node, name, args, kwargs, signals)
        if value is None:
            self.leave((args, kwargs))
            value = self.add("input", at=node)
        self.values[node] = value
        if is_in_place(node) and isinstance(node.args[0], fx.Node):
            self.values[node.args[0]] = value

    def understood(self, node: fx.Node, name: str, args: Any, kwargs: Any, signals: list[Signal]) -> Any:
        """The value of an operation on elements, or of a sum; None for others."""
        nodes = {s.node for s in signals}
        if (combined := self.combined(name, args, kwargs, signals, "", node)) is not None:
            return combined
        if name in ("sum", "mean") and isinstance(stack := args[0], Stacked):
            along = (*args[1:], kwargs.get("dim"))[0]
            share = 1.0 if name == "sum" else 1 / len(stack.parts)
            return self.sum_of(stack.parts, [share] * len(stack.parts), "", node) if along == stack.dim else None
        if name in _CASTS and len(signals) == 1 and signals[0].linear is None:
            return signals[0]
        known = name in LINEAR | ELEMENTWISE or called_activation(node) is not None
        plain = not any(isinstance(value, Stacked) for value in leaves((args, kwargs)))
        if len(nodes) == 1 and known and plain and name not in VARYING:
            return self.elementwise(name, _careful(function_of(node)), args, kwargs, "", node, whole=False)
        return None

    def activation(self, signal: Signal, path: str) -> Activation:
        key = (signal.key, signal.base if signal.base != IDENTITY else None)
        if key not in self.activations:
            try:
                self.activations[key] = as_activation(signal.of_base, signal.key[0])
            except ValueError:  # no activation after all, such as a mask
                self.activations[key] = Activation(signal.key[0], signal.of_base)
        return self.activations[key]


def _careful(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on copies of its tensors, which it may overwrite."""
    return lambda *args, **kwargs: function(*(a.clone() if isinstance(a, Tensor) else a for a in args), **kwargs)


class _Held:
    """A tensor of the module's own."""


def is_in_place(node: fx.Node) -> bool:
    """True of a traced operation that changes its first argument."""
    raw = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    marked = node.kwargs.get("inplace") is True or (node.target is F.relu and node.args[1:2] == (True,))
    return marked or raw in _IN_PLACE_OPERATORS or (raw.endswith("_") and not raw.startswith("_"))


_IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv"}


def function_of(node: fx.Node) -> Callable[..., Any]:
    """The function that a traced node calls, out of place."""
    target = node.target
    if isinstance(target, str):
        target = getattr(Tensor, target.removesuffix("_") if not target.endswith("__") else target)
    elif (name := getattr(target, "__name__", "")) in _IN_PLACE_OPERATORS:
        target = getattr(operator, name[1:])
    elif name.endswith("_") and not name.startswith("_"):
        target = getattr(torch, name[:-1], None) or getattr(F, name[:-1])
    assert callable(target)
    return target


def called_function(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The function that a node calls, with its other arguments, out of place."""
    keywords = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    rest = () if node.target is F.relu else node.args[1:]  # whose second is ``inplace``
    function = function_of(node)
    return _Called(function, rest, keywords) if rest or keywords else function


class _Called:
    """A function with the arguments that come after its first."""

    def __init__(self, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.kwargs)
