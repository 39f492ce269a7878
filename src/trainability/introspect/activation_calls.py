"""Finding the activations that a model calls as functions, and for each an exact place to read its result.

One recorder is told what happens in a pass of the model, be it run on a batch or traced symbolically. A place serves
where it holds the result of such a call, and nothing else, every time that the model comes by.
"""

import dis
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from trainability.introspect.activation_table import CALLED, VARYING
from trainability.introspect.activations import FUNCTIONS, computes_elementwise, is_nonlinearity
from trainability.introspect.hooks import Function, Place, activation_of
from trainability.introspect.run import call, observing
from trainability.introspect.torch_private import version_of
from trainability.introspect.weight_layers import is_weight_layer

_CLAMPS = ("clamp", "clamp_min", "clip")
_CLAMP_FUNCTIONS = {
    getattr(owner, name + end)
    for owner in (torch, Tensor)
    for name in _CLAMPS
    for end in ("", "_")
    if hasattr(owner, name + end)
}


@dataclass
class ActivationCalls:
    """Activations called as functions in one pass of a model, and what the pass showed of its modules."""

    places: dict[Place, str] = field(default_factory=dict)  # where results are read -> what is read there
    unread: dict[str, list[str]] = field(default_factory=dict)  # calling module -> functions whose result has no place
    outputs: dict[str, str] = field(default_factory=dict)  # module -> why it is not hidden
    idle: set[str] = field(default_factory=set)  # modules that did not run
    opaque: set[str] = field(default_factory=set)  # modules that were not looked into
    callers: set[str] = field(default_factory=set)  # modules whose forward makes the calls


def find_activation_calls(model: nn.Module, inputs: Any = None) -> ActivationCalls | None:
    """Find them by running the model once on ``inputs``, or by symbolic tracing; ``None`` where that fails."""
    return _by_tracing(model) if inputs is None else _by_running(model, inputs)


def is_activation_module(module: nn.Module) -> bool:
    """True for an elementwise nonlinearity, by its class or by what it does."""
    return is_nonlinearity(module) or computes_elementwise(module)


@dataclass
class _Call:
    """One call of an activation; a key stands for a value at a moment, before or after a change in place."""

    function: Function
    argument: Any
    result: Any
    caller: str
    weight: str | None  # the weight layer that ran last before it


class _Record:
    """The events of a pass: modules begin and end, and functions are called."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.activations = {path for path, module in self.modules.items() if path and is_activation_module(module)}
        self.calls: list[_Call] = []
        self.visits: dict[tuple[str, bool], list[Any]] = {}  # path, given or returned -> the keys, visit by visit
        self.makers: dict[Any, str] = {}  # key -> the outermost module that returned it
        self.running: list[str] = [""]
        self.weight: str | None = None

    def enter(self, path: str, key: Any) -> None:
        self.running.append(path)
        self.visits.setdefault((path, True), []).append(key)

    def leave(self, path: str, key: Any) -> None:
        self.running.pop()
        self.visits.setdefault((path, False), []).append(key)
        if is_weight_layer(self.modules[path]):
            self.weight = path

    def made(self, path: str, key: Any) -> None:
        self.makers[key] = path

    def called(self, function: Function, argument: Any, result: Any) -> None:
        if not self.activations.intersection(self.running):
            self.calls.append(_Call(function, argument, result, self.running[-1], self.weight))

    def account(self, output: Any) -> ActivationCalls:
        """The places where results can be read: returned by a module, else given to one, else computed again."""
        found = ActivationCalls(idle={p for p in self.modules if p and (p, False) not in self.visits})
        hidden = {}
        for call_ in self.calls:
            if call_.result == output:
                if at := self.makers.get(call_.argument, call_.weight):
                    found.outputs[at] = f"the {call_.function.name} after it is the output of the model"
            else:
                hidden[call_.result] = call_
                found.callers.add(call_.caller)
        for path in self.activations:
            if self.visits.get((path, False), [None])[-1] == output:
                found.outputs[path] = "its output is the output of the model, not a hidden layer"
        read: set[Any] = set()
        for result, call_ in hidden.items():
            if result in read:
                continue
            for place, results, note in self._candidates(call_):
                if len(set(results)) == len(results) and hidden.keys() >= set(results) and read.isdisjoint(results):
                    found.places[place] = note
                    read.update(results)
                    break
            else:
                functions = found.unread.setdefault(call_.caller, [])
                functions += [call_.function.name] * (call_.function.name not in functions)
        return found

    def _candidates(self, call_: _Call) -> Iterator[tuple[Place, list[Any], str]]:
        """Places that hold the result of a call, best first, with all that they hold and what is read there."""
        name = call_.function.name
        for given, note in ((False, f"the result of {name}, which it returns"), (True, f"the result of {name}")):
            for (path, side), keys in self.visits.items():
                made_there = given or f"{call_.caller}.".startswith(f"{path}.")  # and not just handed on
                if side is given and made_there and call_.result in keys:
                    yield Place(path, given, name), keys, note
        maker = self.makers.get(call_.argument)
        if maker is not None and name not in VARYING:  # or it could not be repeated
            same = [c for c in self.calls if c.function == call_.function and self.makers.get(c.argument) == maker]
            if {c.argument for c in same} == {key for key, path in self.makers.items() if path == maker}:
                place = Place(maker, False, name, call_.function, call_.caller)
                yield place, [c.result for c in same], "computed again, as no module is given the result alone"


def _activation(name: str | None, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Function | None:
    """The activation that a call with these further arguments is, out of place; None where it is none."""
    if name is None:
        limits = dict(zip(("min", "max"), args, strict=False)) | kwargs
        is_clamp = target in _CLAMP_FUNCTIONS or (isinstance(target, str) and target.rstrip("_") in _CLAMPS)
        zero = isinstance(limits.get("min"), int | float) and limits["min"] == 0
        return Function("clamp", (0,)) if is_clamp and zero and limits.get("max") is None else None
    plain = tuple(a for a in args if isinstance(a, int | float | str) and not isinstance(a, bool))
    further = tuple((k, v) for k, v in sorted(kwargs.items()) if k != "inplace" and isinstance(v, int | float | str))
    return Function(name, plain, further)


class _CallWatch(TorchFunctionMode):
    """A source of the events that a record keeps: the model as it runs."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self.record = record
        self.kept: list[Any] = []  # so that no two values have the same identity

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        function = None
        if args and isinstance(args[0], Tensor) and (func in FUNCTIONS or func in _CLAMP_FUNCTIONS):
            function = _activation(FUNCTIONS.get(func), func, args[1:], kwargs)
        argument = self.key(args[0]) if function is not None else None
        result = func(*args, **kwargs)
        if function is not None:
            self.record.called(function, argument, self.key(result))
        elif args and result is args[0] and "dropout" in getattr(func, "__name__", ""):
            result = result.view_as(result)  # in evaluation it leaves its argument alone, in training it does not
        return result

    def key(self, value: Any) -> Any:
        """The identity of the first floating-point tensor in a value, with the number of its changes in place."""
        tensor = activation_of(value)
        self.kept.append(tensor)
        return None if tensor is None else (id(tensor), 0 if tensor.is_inference() else version_of(tensor))

    def enter(self, path: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.record.enter(path, self.key((args, kwargs)))

    def leave(self, path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.record.leave(path, self.key(output))

    def made(self, path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.record.made(path, self.key(output))


def _by_running(model: nn.Module, inputs: Any) -> ActivationCalls:
    record = _Record(model)
    watch = _CallWatch(record)
    with observing(model), torch.no_grad(), ExitStack() as hooks:
        for path, module in record.modules.items():
            if path:
                enter = partial(watch.enter, path)
                hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                hooks.enter_context(module.register_forward_hook(partial(watch.leave, path), prepend=True))
                hooks.enter_context(module.register_forward_hook(partial(watch.made, path)))
        with watch:
            output = call(model, inputs)
    return record.account(watch.key(output) if isinstance(output, Tensor) else object())


class _Tracer(fx.Tracer):
    """A source of the events that a record keeps: the model as it is traced."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self.record = record
        self.opaque: set[str] = set()
        self.changes: dict[fx.Node, int] = {}
        self.aliases: dict[fx.Node, fx.Node] = {}  # nodes that are the tensor which they changed in place

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Look into everything but torch's modules and activations."""
        return super().is_leaf_module(m, module_qualified_name) or module_qualified_name in self.record.activations

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.record.enter(path, self.key((args, kwargs)))
        if self.is_leaf_module(m, path) and any(True for _ in m.children()):
            self.opaque.add(path)
        output = super().call_module(m, forward, args, kwargs)
        if getattr(m, "inplace", False):
            self.change(self.first((args, kwargs)))
        self.record.leave(path, self.key(output))
        self.record.made(path, self.key(output))
        return output

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *further: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *further, **named)
        if kind not in ("call_function", "call_method") or not args or not isinstance(args[0], fx.Node):
            return node
        word = target if isinstance(target, str) else getattr(target, "__name__", "")
        bare = word.rstrip("_")
        name = FUNCTIONS.get(target) if kind == "call_function" else bare if bare in CALLED else None
        function = _activation(name, target, tuple(args[1:]), dict(kwargs))
        argument = self.key(args[0])
        in_place = (word.endswith("_") and not word.endswith("__")) or word == "setitem" or kwargs.get("inplace")
        if in_place or (word.startswith("i") and word[1:] in _OPERATORS) or any(a is True for a in args[1:]):
            self.change(args[0])
            self.aliases[node] = args[0]
        if function is not None:
            self.record.called(function, argument, self.key(node))
        return node

    def change(self, node: fx.Node | None) -> None:
        """Note that a value was changed in place."""
        if node is not None:
            node = self.aliases.get(node, node)
            self.changes[node] = self.changes.get(node, 0) + 1

    def key(self, value: Any) -> Any:
        """The node of the first value, with the number of its changes in place."""
        node = self.first(value)
        node = self.aliases.get(node, node) if node is not None else None
        return None if node is None else (node, self.changes.get(node, 0))

    def first(self, value: Any) -> fx.Node | None:
        """The first node among values."""
        if isinstance(value, fx.Proxy):
            return value.node
        if isinstance(value, fx.Node):
            return value
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return next((node for item in items if (node := self.first(item)) is not None), None)


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "mod")


def _by_tracing(model: nn.Module) -> ActivationCalls | None:
    record = _Record(model)
    tracer = _Tracer(record)
    try:
        with observing(model):
            graph = tracer.trace(model)
    except Exception:  # tracing runs the model's own code on proxies, which may fail in any way
        return None
    output = next(node.args[0] for node in graph.nodes if node.op == "output")
    found = record.account(tracer.key(output) if isinstance(output, fx.Node) else object())
    found.opaque = tracer.opaque
    return found


def suspected_calls(model: nn.Module, below: set[str] | None = None) -> dict[str, str]:
    """Modules, and for each an activation that its code seems to call as a function.

    For models that cannot be traced; ``below``: only within these modules.
    """
    found = {}
    for path, module in model.named_modules():
        inside = below is None or any(path == top or path.startswith(f"{top}.") for top in below)
        if inside and not is_activation_module(module):
            held = [FUNCTIONS[v] for v in vars(module).values() if isinstance(v, Callable) and v in FUNCTIONS]  # type: ignore[arg-type]
            own = [vars(kind)["forward"] for kind in type(module).__mro__ if "forward" in vars(kind)]
            named = (name for forward in own for name in _named(forward, type(module), set()))
            name = next(chain(held, named), None)
            if name is not None:
                found[path] = name
    return found


def _named(function: Any, owner: type, seen: set[CodeType]) -> Iterator[str]:
    """Activations that a function names, or one that it calls."""
    code = getattr(function, "__code__", None)
    if code is None or code in seen or getattr(function, "__module__", "").partition(".")[0] == "torch":
        return
    seen.add(code)
    for before, now in pairwise([*dis.get_instructions(code)]):
        name = now.argval
        if not isinstance(name, str) or not now.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL")):
            continue
        if before.argval == "self":  # a submodule, or a method of the module
            yield from _named(getattr(owner, name, None), owner, seen)
        elif name.rstrip("_") in CALLED and (name != "threshold" or before.argval in ("F", "functional", "torch")):
            yield name.rstrip("_")
        elif isinstance(helper := function.__globals__.get(name), FunctionType):
            yield from _named(helper, owner, seen)
