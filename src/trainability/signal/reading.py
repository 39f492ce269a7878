"""`read(model, inputs)`: the signal graph of a model that was written without any thought of it."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.norms import NORM_OPERATIONS
from trainability.introspect.run import RandomState, unwrap
from trainability.introspect.torch_private import operation_name
from trainability.signal import features
from trainability.signal.activation import Activation, as_activation
from trainability.signal.folding import folded
from trainability.signal.graph import Node, SignalGraph
from trainability.signal.operations import (
    AFFINE,
    ATTENTION,
    CASTS,
    CHOOSING,
    ELEMENTWISE,
    LINEAR,
    PASSING,
    SHAPED_LIKE,
    VIEWS,
    leaves,
    map_leaves,
    mean_of,
    mean_square,
    name_of,
    out_of_place,
    output_count,
    zeros_like_value,
)
from trainability.signal.recording import Recording, record
from trainability.signal.tracker import Signal, Stacked, Tracker, recognized, signals_in


def read(model: nn.Module, inputs: Any) -> SignalGraph:
    """Read the signal graph of an unmodified model off one call of it.

    The call is recorded by `torch.export` at evaluation, without computing anything. Operations that act on single
    elements are put together until the next weight layer, sum or pooling, so that ``x * torch.sigmoid(x)`` is one
    activation. Constants beside activations and sums are scales, and weights of the sums. Pooling, reshaping and
    dropout at evaluation leave a signal as it is.

    Args:
        model: any module.
        inputs: a batch, as in `trainability.measure`.

    Raises:
        UnsupportedModelError: the theory has no rule for something in it: attention, gates that multiply two signals,
            weights that are used twice, decisions on values. The message names the module and says what to do.

    >>> from torch import nn
    >>> graph = read(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3))
    >>> [(node.kind, node.path) for node in graph.nodes]
    [('input', ''), ('affine', '0'), ('nonlinear', '1'), ('affine', '2'), ('output', '')]
    """
    return read_recorded(unwrap(model), inputs)[0]


def read_recorded(model: nn.Module, inputs: Any) -> tuple[SignalGraph, Recording]:
    """The graph, and the recording that it was read off, whose operations its nodes name."""
    recording = record(model, inputs)
    reader = _GraphReader(model, recording)
    random_state = RandomState(model)  # a constant may be drawn in forward
    try:
        for node in recording.graph.nodes:
            reader.visit(node)
    finally:
        random_state.restore()
    return reader.graph(), recording


class _GraphReader(Tracker):
    def __init__(self, model: nn.Module, recording: Recording) -> None:
        super().__init__()
        self.model = model
        self.recording = recording
        self.paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
        self.values: dict[fx.Node, Any] = {}
        self.used: dict[str, str] = {}  # parameter -> module that multiplied by it
        self.origins: dict[fx.Node, frozenset[str]] = {}  # of a value that no input reaches: the tensors of the model
        self.features: dict[fx.Node, features.Dims] = {}
        self.outputs: list[int] = []

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.placeholder(node)
        elif node.op == "get_attr":
            self.values[node] = getattr(node.graph.owning_module, str(node.target), None)
        elif node.op == "output":
            self.outputs += map(self.settle, signals_in(fx.map_arg(node.args, self.values.__getitem__)))
        elif node.op == "call_function" and (node.users or name_of(node) != operation_name(node)):  # else of no effect
            self.call(node)

    def placeholder(self, node: fx.Node) -> None:
        held = self.recording.tensors.get(node.name)
        if held is None:
            self.values[node] = self.add("input", (), "", node, detail=node.name)
            self.features[node] = features.of_input(features.shape_of(node))
        else:
            self.values[node] = held
            name = self.recording.names.get(node.name)
            self.origins[node] = frozenset() if name is None else frozenset([name])

    def call(self, node: fx.Node) -> None:
        path, name = self.place(node), name_of(node)
        args = fx.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, self.values.__getitem__)
        if any(isinstance(v, Stacked) for v in leaves((args, kwargs))):
            self.values[node] = self.stacked(node, name, path, args)
            return
        signals = signals_in((args, kwargs))
        if not signals:
            self.values[node] = self.constant(node, args, kwargs)
            if name != operation_name(node) and isinstance(node.args[0], fx.Node):
                self.values[node.args[0]] = self.values[node]  # what it would change in place is the model's own
            known = [self.origins.get(source, frozenset()) for source in node.all_input_nodes]
            self.origins[node] = frozenset[str]().union(*known)
            return
        if name in SHAPED_LIKE:
            made = self.constant(node, map_leaves(zeros_like_value, node.args), kwargs)
            alike = isinstance(made, Tensor) and made.numel() > 0 and bool((made == made.flatten()[0]).all())
            self.values[node] = made.flatten()[0] if alike else made  # one number for all places
            return
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        self.features[node] = self.features.get(first, frozenset()) if first is not None else frozenset()
        self.values[node] = self.signal(node, name, path, args, kwargs, signals)
        if name != operation_name(node) and first is not None:
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
                f"it changes a value in place ({operation_name(node)}) that is used later under another shape, so "
                "which values are meant cannot be told; use the result of an operation that is not in place",
                code="changed-in-place",
            )

    def constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        try:
            with torch.no_grad():
                copies = map_leaves(lambda v: v.clone() if isinstance(v, Tensor) else v, args)
                return out_of_place(node)(*(args if name_of(node) == operation_name(node) else copies), **kwargs)
        except Exception:  # its value is not needed unless a signal meets it, which says so then
            return None

    def signal(self, node: fx.Node, name: str, path: str, args: Any, kwargs: Any, signals: list[Signal]) -> Any:
        if node.target is operator.getitem:
            return self.part(node, path, args)
        if name in ATTENTION or name in ("embedding", "prelu", "_prelu_kernel"):
            raise _refusal(name, path)
        if name in CASTS and len(signals) == 1:
            return self.cast(node, path, signals[0])
        if name in AFFINE:
            return self.affine(node, name, path, args, signals)
        chooses = name in CHOOSING and bool(node.kwargs or len(node.args) > 1)
        if len(signals) == 1 and (chooses or name in PASSING):
            self.check_places(node, name, path)
            if features.shape_of(_first(node)):
                self.features[node] = features.after(node, self.features[node])
            return self.add("pass", (self.settle(signals[0]),), path, node, detail=name)
        if name in NORM_OPERATIONS:
            weights = [mean_square(t) for t in args[1:3] if isinstance(t, Tensor)]
            return self.add("normalize", (self.settle(signals[0]),), path, node, weights=tuple(weights), detail=name)
        if name in ("cat", "concat"):
            return self.concat(node, path, args, kwargs, signals)
        if (combined := self.combined(name, args, kwargs, signals, path, node)) is not None:
            return combined
        others = [(v, a) for v, a in zip(args, node.args, strict=True) if isinstance(v, Tensor) and self.held(v, a)]
        if others:
            return self.with_parameter(node, name, path, signals, others[0][0], args)
        if name in LINEAR | ELEMENTWISE and len({s.node for s in signals}) == 1:
            whole = not [*(module := self.model.get_submodule(path)).children(), *module.parameters()]
            return self.elementwise(name, out_of_place(node), args, kwargs, path, node, whole)
        raise _refusal(name, path)

    def held(self, value: Tensor, source: object) -> bool:
        """True for a tensor beside a signal that is one of the model's own, or has several values."""
        return value.numel() > 1 or (isinstance(source, fx.Node) and bool(self.origins.get(source)))

    def cast(self, node: fx.Node, path: str, signal: Signal) -> Signal:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
            raise UnsupportedModelError(
                path, f"it makes whole numbers of an activation ({value.dtype}), which no rule covers", code="no-rule"
            )
        return signal

    def part(self, node: fx.Node, path: str, args: Any) -> Any:
        if isinstance(args[0], list | tuple):
            return args[0][args[1]]
        source = self.settle(args[0])
        place = (source, "part", args[1])
        if place not in self.settled:
            self.settled[place] = self.add("pass", (source,), path, node, detail="part").node
        return Signal(self.settled[place], at=node)

    def stacked(self, node: fx.Node, name: str, path: str, args: Any) -> Any:
        """A sum or mean of what was stacked, or its parts again."""
        stack = args[0]
        dims = len(features.shape_of(node.args[0]))
        over = [d % dims for d in features.reduced(node)] if isinstance(stack, Stacked) and dims else []
        if name in ("sum", "mean") and over == [stack.dim % dims] and len({s.node for s in stack.parts}) > 1:
            share = 1.0 if name == "sum" else 1 / len(stack.parts)
            self.features[node] = self.features.get(_first(node).all_input_nodes[0], frozenset())
            return self.sum_of(stack.parts, [share] * len(stack.parts), path, node)
        if name == "unbind" and (*args, 0)[1] % dims == stack.dim % dims:
            return stack.parts
        if name == "select" and args[1] % dims == stack.dim % dims:
            return stack.parts[args[2]]
        raise UnsupportedModelError(
            path,
            f"it stacks activations and then takes {name} of them, for which the theory has no rule; it has one for "
            "the sum and the mean over the stacked dimension, and for taking it apart",
            code="no-rule",
        )

    def check_places(self, node: fx.Node, name: str, path: str) -> None:
        """Refuse means and maxima over, and padding of, features or the batch."""
        source = _first(node)
        before, dims = self.features.get(source, frozenset()), len(features.shape_of(source))
        over: list[int] = []
        if name in {"mean"} | CHOOSING and dims:
            over = [d % dims for d in features.reduced(node)]
        elif name in ("pad", "constant_pad_nd") and isinstance(node.args[1], list | tuple):
            over = [dims - 1 - i // 2 for i, size in enumerate(node.args[1]) if size]
        if 0 in over or before & set(over):
            raise UnsupportedModelError(
                path,
                f"its {name} is over the features or the batch, for which the theory has no rule; apply it to places "
                "alone",
                code="over-features",
            )

    def affine(self, node: fx.Node, name: str, path: str, args: Any, signals: list[Signal]) -> Signal:
        if len(signals) > 1:
            raise UnsupportedModelError(
                path,
                f"it multiplies two activations with one another ({name}), as attention does; the theory has no rule "
                "for that. Shape the parts without it: apply_(model, ..., where=...), or read them on their own",
                code="product-of-activations",
            )
        weights = [(v, a) for v, a in zip(args, node.args, strict=True) if isinstance(v, Tensor) and v.dim() >= 2]
        if not weights or not isinstance(weights[-1][1], fx.Node):
            raise _refusal(name, path)
        weight, source = weights[-1]
        assert isinstance(source, fx.Node)
        left = args[0] is weight
        parameters = self.origins.get(source, frozenset()) & self.recording.parameters
        if not parameters:
            return self.fixed(node, name, path, weight, left, signals[0])
        if taken := next((self.used[p] for p in parameters if p in self.used), None):
            where = "its weight" if taken == path else f"its weight, which {taken} has too,"
            raise UnsupportedModelError(
                path,
                f"{where} is used more than once in a call; the theory needs weights that are independent of one "
                "another, so give each place a layer of its own",
                code="weights-shared",
            )
        if not weight.numel():
            raise UnsupportedModelError(path, f"its weight of shape {tuple(weight.shape)} is empty", code="zero-width")
        self.used |= dict.fromkeys(parameters, path)
        self.features[node] = features.of_product(node, left)
        bias = next((v for v in args if isinstance(v, Tensor) and v.dim() == 1), None)
        gain = mean_square(weight) * weight.numel() / output_count(name, weight, node, left)
        shift = 0.0 if bias is None else mean_square(bias)
        plain = self.plain(source)
        return self.add(
            "affine",
            (self.settle(signals[0]),),
            path,
            node,
            weights=(gain, shift),
            detail=str(source),
            weight=plain or max(parameters, key=self.size),  # of several, as a weight with a gain, the largest
            derived=plain is None,
        )

    def size(self, name: str) -> int:
        """Number of entries of a parameter."""
        return self.model.get_parameter(name).numel()

    def plain(self, source: fx.Node) -> str | None:
        """Name of the parameter that a value is, in whatever shape or type; None where it is made of one."""
        while source.op == "call_function" and name_of(source) in VIEWS | CASTS and len(source.all_input_nodes) == 1:
            source = source.all_input_nodes[0]
        return self.recording.names.get(source.name) if source.op == "placeholder" else None

    def fixed(self, node: fx.Node, name: str, path: str, matrix: Tensor, left: bool, signal: Signal) -> Signal:
        """A product with what is no parameter: an average over places (adjacency, blur), or a rotation of them."""
        source = next(a for a in node.all_input_nodes if self.values.get(a) is not matrix)
        if name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
            rows = matrix if left else matrix.transpose(-1, -2)
        else:
            rows = matrix.flatten(1)
        values = rows.detach().double()
        averages = name.startswith("conv") and bool((values.sum(-1) - 1).abs().max() < 1e-3)
        turns = bool((values.square().sum(-1).log().abs() < math.log(1.5)).all())
        keeps = matrix.is_meta or averages or turns
        over = features.of_product(node, left) & self.features.get(source, frozenset())
        depthwise = name.startswith("conv") and matrix.shape[1] == 1
        if not keeps or (over and not depthwise):
            raise UnsupportedModelError(
                path,
                f"it multiplies by a tensor that is no parameter ({name} with {node.all_input_nodes[-1]}), "
                + ("over the features" if keeps else "whose rows have squares that do not add up to 1")
                + ", so what it leaves of the signal depends on how alike the values are that it takes together; the "
                "theory takes weights to be random and independent. Make it a parameter if it is drawn at random",
                code="fixed-matrix",
            )
        self.features[node] = self.features.get(source, frozenset())
        return self.add("pass", (self.settle(signal),), path, node, detail="fixed matrix")

    def concat(self, node: fx.Node, path: str, args: Any, kwargs: Any, signals: list[Signal]) -> Signal:
        parts, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
        assert isinstance(node.args[0], list | tuple)
        sources = [part for part in node.args[0] if isinstance(part, fx.Node)]
        shapes = [features.shape_of(part) for part in sources]
        dims = len(shapes[0])
        known = self.features.get(sources[0], frozenset()) or features.of_input(shapes[0])
        where = ", ".join(map(str, sorted(known)))
        if len(parts) != len(signals) or dim % dims not in known:
            raise UnsupportedModelError(
                path,
                f"it concatenates along dimension {dim} of shape {tuple(shapes[0])}, or with something that is not an "
                f"activation; the theory has a rule for features alone (dimension {where})",
                code="concatenation",
            )
        self.features[node] = known
        shares = [shape[dim] / sum(s[dim] for s in shapes) for shape in shapes]
        inputs = tuple(self.settle(s) for s in signals)
        return self.add("concat", inputs, path, node, weights=tuple(shares), detail="cat")

    def with_parameter(
        self, node: fx.Node, name: str, path: str, signals: list[Signal], other: Tensor, args: Any
    ) -> Signal:
        size, mean = mean_square(other), mean_of(other)
        if len(signals) > 1 or name not in ("add", "sub", "rsub", "mul", "div"):
            raise UnsupportedModelError(
                path,
                f"its operation {name} combines an activation with a tensor of the model's own (a learned activation, "
                "a mask), for which the theory has no rule; use a fixed activation instead",
                code="learned-activation",
            )
        inputs = (self.settle(signals[0]),)
        if name in ("add", "sub", "rsub"):
            sign = -1 if name == "sub" else 1
            return self.add("shift", inputs, path, node, weights=(size, sign * mean), detail=name)
        if name == "div" and args[0] is not signals[0]:
            raise _refusal(name, path)
        factor = (
            math.sqrt(size) if name == "mul" else float(other.detach().double().reciprocal().square().mean()) ** 0.5
        )
        if other.numel() == 1:
            factor = mean if name == "mul" else 1 / mean  # with its sign
        return self.add("scale", inputs, path, node, weights=(factor,), detail=name)

    def activation(self, signal: Signal, path: str) -> Activation:
        module = self.model.get_submodule(path)
        try:
            known = getattr(module, "activation", None)
            if isinstance(known, Activation):  # it knows its own, as those of `trainability.remedies` do
                return known
            key = (signal.key, signal.base if signal.base != (1.0, 0.0) else None)
            if key not in self.activations:
                name = type(module).__name__ if not any(module.children()) else signal.key[0]
                self.activations[key] = recognized(signal, module) or as_activation(signal.of_base, name)
            return self.activations[key]
        except ValueError as error:
            raise UnsupportedModelError(
                path, f"its activation has no place in the theory: {error}", code="activation"
            ) from error

    def graph(self) -> SignalGraph:
        if not self.outputs:
            raise UnsupportedModelError(
                "", "no output of it depends on its inputs, so there is no network to read", code="no-network"
            )
        if not any(node.kind == "affine" for node in self.nodes):
            raise UnsupportedModelError("", "it has no weight layer", code="no-weight-layer")
        kept, ends = folded(self.nodes, self.outputs)
        return SignalGraph((*kept, Node("output", tuple(dict.fromkeys(ends)))))


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _refusal(name: str, path: str) -> UnsupportedModelError:
    code = "no-rule"
    if name in ATTENTION:
        what, code = f"its operation {name} is attention or similar, for which the theory has no rule", "attention"
    elif name == "mul":
        what, code = "it multiplies two activations with one another (a gate), for which the theory has no rule", "gate"
    elif name == "embedding":
        what, code = "an embedding takes tokens and not a signal; read the part of the model behind it", "embedding"
    elif name in ("rrelu", "bernoulli", "rand_like", "randn_like"):
        what, code = f"its operation {name} is random, and not a fixed function", "random"
    elif name in ("prelu", "_prelu_kernel"):
        what = "prelu learns its own form, so its maps change; use a leaky_relu instead"
        code = "learned-activation"
    else:
        what = f"the theory has no rule for its operation {name}"
    return UnsupportedModelError(
        path, f"{what}. Shape the parts without it, each read on its own, or choose another architecture", code=code
    )
