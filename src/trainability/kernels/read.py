"""`read(model, inputs)`: the kernel graph of a model that was written without any thought of kernels."""

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainability.errors import UnsupportedModelError
from trainability.kernels.activation import Activation, as_activation
from trainability.kernels.export import record
from trainability.kernels.graph import Graph, Kind, Node
from trainability.kernels.operations import (
    AFFINE,
    ATTENTION,
    ELEMENTWISE,
    LINEAR,
    NORMALISATION,
    PASSING,
    SHAPED_LIKE,
    VIEWS,
    common_module,
    leaves,
    map_leaves,
    mean_of,
    mean_square,
    name_of,
    out_of_place,
    output_count,
    raw_name,
    zeros_like_value,
)
from trainability.kernels.signals import Signal, as_identity, keyed, linear_of, recognised, without_factor
from trainability.observe import unwrap


def read(model: nn.Module, inputs: Any) -> Graph:
    """Read the kernel graph of an unmodified model off one call of it.

    The call is recorded by `torch.export` at evaluation, without computing anything. Operations that act on single
    elements are put together until the next weight layer, sum or pooling, so that ``x * torch.sigmoid(x)`` is one
    activation. Pooling, reshaping and dropout at evaluation leave a kernel as it is.

    Args:
        model: any module.
        inputs: a batch, as in `trainability.measure`.

    Raises:
        UnsupportedModelError: something in it has no kernel: attention, gates that multiply two signals, weights that
            are used twice, decisions on values. The message names the module and says what to do.

    >>> from torch import nn
    >>> graph = read(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3))
    >>> [(node.kind, node.path) for node in graph.nodes]
    [('input', ''), ('affine', '0'), ('nonlinear', '1'), ('affine', '2'), ('output', '')]
    """
    model = unwrap(model)
    recorded, tensors = record(model, inputs)
    reader = _Reader(model, tensors)
    for node in recorded.nodes:
        reader.visit(node)
    return reader.graph()


class _Reader:
    def __init__(self, model: nn.Module, tensors: dict[str, Tensor | None]) -> None:
        self.model = model
        self.tensors = tensors
        self.paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, Any] = {}
        self.used: dict[str, str] = {}  # parameter -> module that multiplied by it
        self.origins: dict[fx.Node, frozenset[str]] = {}  # of a value that no input reaches: the tensors of the model
        self.outputs: list[int] = []
        self.activations: dict[tuple[Any, ...], Activation] = {}
        self.settled: dict[tuple[Any, ...], int] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            held = self.tensors.get(node.name)
            self.values[node] = self.add("input") if held is None else held
            self.origins[node] = frozenset([node.name])
        elif node.op == "get_attr":
            self.values[node] = getattr(node.graph.owning_module, str(node.target), None)
        elif node.op == "output":
            for value in leaves(fx.map_arg(node.args, self.values.__getitem__)):
                if isinstance(value, Signal):
                    self.outputs.append(self.settle(value))
        elif node.op == "call_function":
            path = self.place(node)
            args = fx.map_arg(node.args, self.values.__getitem__)
            kwargs = fx.map_arg(node.kwargs, self.values.__getitem__)
            name = name_of(node)
            signals = [v for v in leaves((args, kwargs)) if isinstance(v, Signal)]
            if not signals:
                self.values[node] = self.constant(node, args, kwargs)
                known = [self.origins.get(source, frozenset()) for source in node.all_input_nodes]
                self.origins[node] = frozenset[str]().union(*known)
                return
            if name in SHAPED_LIKE:
                made = self.constant(node, map_leaves(zeros_like_value, node.args), kwargs)
                alike = isinstance(made, Tensor) and made.numel() > 0 and bool((made == made.flatten()[0]).all())
                self.values[node] = made.flatten()[0] if alike else made  # one number for all places
                return
            self.values[node] = self.signal(node, name, path, args, kwargs, signals)
            if name != raw_name(node) and isinstance(first := node.args[0], fx.Node):
                self.check_views(node, first, path)
                self.values[first] = self.values[node]  # it was changed in place

    def place(self, node: fx.Node) -> str:
        """Path of the module whose code called the operation."""
        place = ""
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            inner = str(path).partition("@")[0]
            # Within a forward that was put in the place of another, paths are relative to it.
            place = within if (within := f"{place}.{inner}".lstrip(".")) in self.paths else inner
        return place

    def check_views(self, node: fx.Node, changed: fx.Node, path: str) -> None:
        """Refuse a change in place of a value that others see parts of, or that is a part of another, used later."""
        root = changed
        while name_of(root) in VIEWS and isinstance(root.args[0], fx.Node):
            root = root.args[0]
        aliases = [root]
        for alias in aliases:
            aliases += [user for user in alias.users if name_of(user) in VIEWS and user < node]
        if any(user > node for alias in aliases if alias is not changed for user in alias.users):
            raise UnsupportedModelError(
                path,
                f"it changes a value in place ({raw_name(node)}) that is used later under another shape, so which "
                "values are meant cannot be told; use the result of an operation that is not in place",
            )

    def constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        assert callable(node.target)
        try:
            with torch.no_grad():
                return node.target(*args, **kwargs)
        except Exception:  # its value is not needed unless a signal meets it, which says so then
            return None

    def signal(self, node: fx.Node, name: str, path: str, args: Any, kwargs: Any, signals: list[Signal]) -> Any:
        if node.target is operator.getitem:
            if isinstance(args[0], list | tuple):
                return args[0][args[1]]
            place = (args[0].node, "part", args[1])
            if place not in self.settled:
                self.settled[place] = self.add("pass", (args[0].node,), path, detail="part").node
            return Signal(self.settled[place])
        if name in ATTENTION or name == "embedding":
            raise _refusal(name, path)
        if name in AFFINE:
            return self.affine(node, name, path, args, signals)
        if name in PASSING and len(signals) == 1:
            self.check_features(node, name, path)
            return self.add("pass", (self.settle(signals[0]),), path, detail=name)
        if name in NORMALISATION:
            weights = [mean_square(t) for t in args[1:3] if isinstance(t, Tensor)]
            return self.add("normalise", (self.settle(signals[0]),), path, weights=tuple(weights), detail=name)
        if name in ("cat", "concat"):
            return self.concat(node, path, args, signals)
        if name in ("add", "sub", "rsub") and len(signals) == 2 and signals[0].node != signals[1].node:
            return self.sum(name, path, kwargs, signals)
        others = [v for v in leaves((args, kwargs)) if isinstance(v, Tensor) and v.numel() > 1]
        if others:
            return self.with_parameter(name, path, signals, others[0], args)
        if name in LINEAR | ELEMENTWISE and len({s.node for s in signals}) == 1:
            return self.elementwise(node, name, path, args, kwargs, signals)
        raise _refusal(name, path)

    def check_features(self, node: fx.Node, name: str, path: str) -> None:
        """Refuse means over, and padding of, the features, which change what every neuron is."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        dims = len(source.meta["val"].shape) if isinstance(source.meta.get("val"), Tensor) else 0
        over: list[int] = []
        if name in ("mean", "amax") and dims:
            given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            listed = given if isinstance(given, list | tuple) else [given]
            over = [d % dims for d in listed if isinstance(d, int)] if any(isinstance(d, int) for d in listed) else [0]
        elif name in ("pad", "constant_pad_nd") and isinstance(node.args[1], list | tuple):
            over = [dims - 1 - i // 2 for i, size in enumerate(node.args[1]) if size]
        # Maps keep their features first or last, and the other dimensions are places.
        if over and (0 in over or dims == 2 or {1, dims - 1} <= set(over)):
            raise UnsupportedModelError(
                path,
                f"{name} there is over the features, or over the batch, for which the theory has no rule; do it over "
                "places alone",
            )

    def affine(self, node: fx.Node, name: str, path: str, args: Any, signals: list[Signal]) -> Signal:
        if len(signals) > 1:
            raise UnsupportedModelError(
                path,
                f"it multiplies two activations with one another ({name}), as attention does; the theory has no rule "
                "for that. Shape the parts without it: apply_(model, ..., where=...), or read them on their own",
            )
        weights = [(v, a) for v, a in zip(args, node.args, strict=True) if isinstance(v, Tensor) and v.dim() >= 2]
        if not weights:
            raise _refusal(name, path)
        weight, source = weights[-1]
        parameters = self.origins.get(source, frozenset([str(source)])) if isinstance(source, fx.Node) else frozenset()
        if taken := next((self.used[p] for p in parameters if p in self.used), None):
            where = "its weight" if taken == path else f"its weight, which {taken} has too,"
            raise UnsupportedModelError(
                path,
                f"{where} is used more than once in a call; the theory needs weights that are independent of one "
                "another, so give each place a layer of its own",
            )
        self.used |= dict.fromkeys(parameters, path)
        bias = next((v for v in args if isinstance(v, Tensor) and v.dim() == 1), None)
        outputs = output_count(name, weight, node, left=args[0] is weight)
        gain = mean_square(weight) * weight.numel() / outputs
        shift = 0.0 if bias is None else mean_square(bias)
        return self.add("affine", (self.settle(signals[0]),), path, weights=(gain, shift), detail=str(source))

    def concat(self, node: fx.Node, path: str, args: Any, signals: list[Signal]) -> Signal:
        parts, dim = args[0], args[1] if len(args) > 1 else 0
        assert isinstance(node.args[0], list | tuple)
        shapes = [part.meta["val"].shape for part in node.args[0] if isinstance(part, fx.Node)]
        dims = len(shapes[0])
        if len(parts) != len(signals) or dim % dims not in (1, dims - 1) or (dims == 3 and dim % dims == 1):
            raise UnsupportedModelError(
                path,
                f"it concatenates along dimension {dim} of shape {tuple(shapes[0])}, or with something that is not an "
                "activation; the theory has a rule for features alone (dimension 1 or the last)",
            )
        shares = [shape[dim] / sum(s[dim] for s in shapes) for shape in shapes]
        return self.add("concat", tuple(self.settle(s) for s in signals), path, weights=tuple(shares), detail="cat")

    def sum(self, name: str, path: str, kwargs: Any, signals: list[Signal]) -> Signal:
        factors = [1.0, float(kwargs.get("alpha", 1))]
        if name == "sub":
            factors[1] *= -1
        if name == "rsub":
            factors = [-factors[1], 1.0]
        inputs, weights = [], []
        for signal, factor in zip(signals, factors, strict=True):
            bare, own = without_factor(signal)
            inputs.append(self.settle(bare))
            weights.append(factor * own)
        return self.add("sum", tuple(inputs), path, weights=tuple(weights), detail="add")

    def with_parameter(self, name: str, path: str, signals: list[Signal], other: Tensor, args: Any) -> Signal:
        size, mean = mean_square(other), mean_of(other)
        if len(signals) > 1 or name not in ("add", "sub", "rsub", "mul", "div"):
            raise UnsupportedModelError(
                path,
                f"{name} there takes a tensor of the model's own beside the activation (a learned activation, a "
                "mask); the theory has no rule for it. Put a fixed activation in its place",
            )
        if name in ("add", "sub", "rsub"):
            sign = -1 if name == "sub" else 1
            return self.add("shift", (self.settle(signals[0]),), path, weights=(size, sign * mean), detail=name)
        if name == "div" and args[0] is not signals[0]:
            raise _refusal(name, path)
        factor = (
            math.sqrt(size) if name == "mul" else float(other.detach().double().reciprocal().square().mean()) ** 0.5
        )
        return self.add("scale", (self.settle(signals[0]),), path, weights=(factor,), detail=name)

    def elementwise(self, node: fx.Node, name: str, path: str, args: Any, kwargs: Any, signals: list[Signal]) -> Signal:
        function = out_of_place(node)

        def composed(z: Tensor) -> Tensor:
            def at(value: Any) -> Any:
                if isinstance(value, Signal):
                    return value(z)
                return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

            result: Tensor = function(*map_leaves(at, args), **map_leaves(at, kwargs))
            return result

        only = signals[0]
        if len(signals) == 1 and only.linear is None and path != only.path and name in LINEAR:
            line = linear_of(name, *map_leaves(as_identity, (args, kwargs)))
            if line is not None:
                a, b = line
                return replace(only, after=(a * only.after[0], a * only.after[1] + b))
        key = (name, keyed(args), keyed(kwargs))
        linear = linear_of(name, args, kwargs)
        known = [s.path for s in signals if s.path is not None]
        return Signal(signals[0].node, composed, linear, key, common_module([path, *known]), self.shaped_at(path))

    def shaped_at(self, path: str) -> Activation | None:
        """The activation of a module that knows its own, as those of `trainability.remedies` do."""
        try:
            known = getattr(self.model.get_submodule(path), "activation", None)
        except ValueError as error:
            raise UnsupportedModelError(path, f"its activation has no kernel: {error}") from error
        return known if isinstance(known, Activation) else None

    def settle(self, signal: Signal) -> int:
        """The node of a signal, with its waiting function as a nonlinear layer, a scale or a shift; one for each."""
        if signal.linear == (1.0, 0.0):
            return signal.node
        place = (signal.node, signal.key, signal.path, signal.after)
        if place not in self.settled:
            self.settled[place] = self.settle_anew(signal, signal.path or "")
        return self.settled[place]

    def settle_anew(self, signal: Signal, path: str) -> int:
        if signal.linear is not None:
            factor, offset = signal.linear
            node = signal.node
            if factor != 1:
                node = self.add("scale", (node,), path, weights=(factor,), detail="mul").node
            if offset:
                node = self.add("shift", (node,), path, weights=(offset**2, offset), detail="add").node
            return node
        if signal.after != (1.0, 0.0):
            inner = self.settle(replace(signal, after=(1.0, 0.0)))
            return self.settle(Signal(inner, linear=signal.after, key=("after", *signal.after), path=signal.path))
        activation = signal.shaped or self.activation(signal, path)
        return self.add("nonlinear", (signal.node,), path, activation=activation, detail=signal.key[0]).node

    def activation(self, signal: Signal, path: str) -> Activation:
        if signal.key not in self.activations:
            assert signal.function is not None
            module = self.model.get_submodule(path)
            try:
                self.activations[signal.key] = recognised(signal.key, module) or as_activation(
                    signal.function, type(module).__name__ if not any(module.children()) else signal.key[0]
                )
            except ValueError as error:
                raise UnsupportedModelError(path, f"its activation has no kernel: {error}") from error
        return self.activations[signal.key]

    def add(self, kind: Kind, inputs: tuple[int, ...] = (), path: str = "", **details: Any) -> Signal:
        self.nodes.append(Node(kind, inputs, path, **details))
        return Signal(len(self.nodes) - 1)

    def graph(self) -> Graph:
        if not self.outputs:
            raise UnsupportedModelError("", "no output of it depends on its inputs, so there is no network to read")
        if not any(node.kind == "affine" for node in self.nodes):
            raise UnsupportedModelError("", "it has no weight layer")
        needed: set[int] = set(self.outputs)
        for k in range(len(self.nodes) - 1, -1, -1):
            if k in needed:
                needed.update(self.nodes[k].inputs)
        position = {k: i for i, k in enumerate(sorted(needed))}
        kept = [replace(self.nodes[k], inputs=tuple(position[i] for i in self.nodes[k].inputs)) for k in position]
        ends = tuple(dict.fromkeys(position[k] for k in self.outputs))
        return Graph((*kept, Node("output", ends)))


def _refusal(name: str, path: str) -> UnsupportedModelError:
    if name in ATTENTION:
        what = f"{name} there is attention or the like, for which the theory of kernels has no rule"
    elif name == "mul":
        what = "it multiplies two activations with one another (a gate), for which the theory has no rule"
    elif name == "embedding":
        what = "an embedding takes tokens and not a signal; read the part of the model behind it"
    elif name in ("rrelu", "bernoulli", "rand_like", "randn_like"):
        what = f"{name} there is random, so it is no fixed function"
    elif name in ("prelu", "_prelu_kernel"):
        what = "prelu learns its own form, so its kernel changes; put a leaky_relu in its place"
    else:
        what = f"the operation {name} there has no rule in the theory of kernels"
    return UnsupportedModelError(
        path, f"{what}. Shape the parts without it, each read on its own, or choose another architecture"
    )
