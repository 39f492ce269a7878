"""Values on their way through recorded operations, and the graph that they leave behind.

What acts on single elements waits until something else takes its result, so that ``x * torch.sigmoid(x)`` becomes one
activation; constants around it become scales, shifts, and weights of sums.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from trainability.introspect.activation_table import EXACT
from trainability.signal.activation import Activation, as_activation, leaky_relu
from trainability.signal.graph import Kind, Node
from trainability.signal.operations import LINEAR, common_module, leaves, map_leaves

Line = tuple[float, float]  # (a, b) of a z + b
IDENTITY: Line = (1.0, 0.0)


@dataclass(frozen=True)
class Signal:
    """The values of a node of the graph, or a function of them, element by element, that waits for what comes next.

    ``linear`` is (a, b) while that function is a z + b. A function that is not is φ(a z + b), times and plus
    constants: ``base`` is the line before φ, ``after`` the one behind it. ``key`` tells functions apart, and ``at`` is
    the operation that gave the values (``base_at`` those before φ, ``inner_at`` those of φ).
    """

    node: int
    function: Callable[[Tensor], Tensor] | None = None
    linear: Line | None = IDENTITY
    key: tuple[Any, ...] = ()
    path: str | None = None
    base: Line = IDENTITY
    after: Line = IDENTITY
    at: fx.Node | None = None
    base_at: fx.Node | None = None
    inner_at: fx.Node | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """The values for values ``z`` of the node."""
        value = z if self.function is None else self.function(z)
        return value if self.after == IDENTITY else self.after[0] * value + self.after[1]

    def of_base(self, t: Tensor) -> Tensor:
        """φ at ``t``."""
        a, b = self.base
        z = t if self.base == IDENTITY else (t - b) / a
        return z if self.function is None else self.function(z)


@dataclass(frozen=True)
class Stacked:
    """Signals that were stacked along a new dimension, until it is known what for."""

    parts: list[Signal]
    dim: int


def signals_in(value: Any) -> list[Signal]:
    """All signals in nested arguments, those in stacks too."""
    parts = (part for leaf in leaves(value) for part in (leaf.parts if isinstance(leaf, Stacked) else [leaf]))
    return [part for part in parts if isinstance(part, Signal)]


class Tracker:
    """Puts operations together to a graph. Those that read recordings are kinds of it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.settled: dict[tuple[Any, ...], int] = {}
        self.activations: dict[tuple[Any, ...], Activation] = {}

    def activation(self, signal: Signal, path: str) -> Activation:
        """The activation that a signal waits with."""
        raise NotImplementedError

    def add(
        self, kind: Kind, inputs: tuple[int, ...] = (), path: str = "", at: fx.Node | None = None, **details: Any
    ) -> Signal:
        """Put a node at the end of the graph."""
        self.nodes.append(Node(kind, inputs, path, at=at, **details))
        return Signal(len(self.nodes) - 1, at=at)

    def elementwise(
        self, name: str, function: Callable[..., Any], args: Any, kwargs: Any, path: str, at: fx.Node, whole: bool
    ) -> Signal:
        """The signal that an operation on elements makes of signals of one node and of constants.

        ``whole``: the module at ``path`` is an activation as a whole, so constants within it are a part of it.
        """
        if whole:
            args, kwargs = map_leaves(lambda v: self._entering(v, path), (args, kwargs))
        signals = [v for v in leaves((args, kwargs)) if isinstance(v, Signal)]
        only = signals[0]
        around = only.linear is None and name in LINEAR and not (whole and path == only.path)
        if len(signals) == 1 and around:
            line = linear_of(name, *map_leaves(_as_identity, (args, kwargs)))
            if line is not None:
                (a, b), (c, d) = line, only.after
                return replace(only, after=(a * c, a * d + b), at=at)

        def composed(z: Tensor) -> Tensor:
            def value(v: Any) -> Any:
                if isinstance(v, Signal):
                    return v(z)
                return v.double() if isinstance(v, Tensor) and v.is_floating_point() else v

            result: Tensor = function(*map_leaves(value, args), **map_leaves(value, kwargs))
            return result

        where = common_module([path, *(s.path for s in signals if s.path is not None)])
        linear = linear_of(name, args, kwargs)
        bases = {(s.base if s.linear is None else s.linear) for s in signals}
        shared = bases.pop() if len(bases) == 1 and linear is None and not whole else IDENTITY
        base = shared if shared[0] else IDENTITY
        key = (name, _keyed(args, base), _keyed(kwargs, base))
        before = next((s.base_at if s.linear is None else s.at for s in signals), None)
        return Signal(only.node, composed, linear, key, where, base, IDENTITY, at, before, at)

    def _entering(self, value: Any, path: str) -> Any:
        outside = isinstance(value, Signal) and value.path != path and value.linear not in (None, IDENTITY)
        return Signal(node := self.settle(value), at=self.nodes[node].at) if outside else value

    def combined(
        self, name: str, args: Any, kwargs: Any, signals: list[Signal], path: str, at: fx.Node
    ) -> Signal | Stacked | None:
        """The sum, or the stack, that an operation makes of signals of several nodes; None of another operation."""
        if name == "stack" and all(isinstance(value, Signal) for value in args[0]):
            return Stacked(list(args[0]), (*args[1:], kwargs.get("dim", 0))[0])
        if len(signals) != 2 or signals[0].node == signals[1].node:
            return None
        if name in ("add", "sub", "rsub"):
            alpha = float(kwargs.get("alpha", 1))
            factors = {"add": [1.0, alpha], "sub": [1.0, -alpha], "rsub": [-alpha, 1.0]}[name]
            return self.sum_of(signals, factors, path, at)
        if name == "lerp" and isinstance(args[2], int | float):
            return self.sum_of(signals, [1 - args[2], args[2]], path, at)
        return None

    def sum_of(self, signals: list[Signal], factors: list[float], path: str, at: fx.Node) -> Signal:
        """A weighted sum of signals of several nodes."""
        inputs, weights = [], []
        for signal, factor in zip(signals, factors, strict=True):
            bare, own = _without_factor(signal)
            inputs.append(self.settle(bare))
            weights.append(factor * own)
        return self.add("sum", tuple(inputs), path, at, weights=tuple(weights), detail="add")

    def settle(self, signal: Signal) -> int:
        """The node of a signal, with its waiting function as a nonlinear layer, a scale or a shift; one for each."""
        if signal.linear == IDENTITY:
            return signal.node
        place = (signal.node, signal.key, signal.path, signal.base, signal.after, signal.linear)
        if place not in self.settled:
            path = signal.path or ""
            if signal.linear is not None:
                self.settled[place] = self._line(signal.node, signal.linear, path, signal.at)
            else:
                self.settled[place] = self._nonlinear(signal, path)
        return self.settled[place]

    def _nonlinear(self, signal: Signal, path: str) -> int:
        activation, after, at = self.activation(signal, path), signal.after, signal.inner_at
        if activation.leaky and after != IDENTITY and _is_line((activation.leaky[1] * after[0], after[1]), IDENTITY):
            # Such as (z + |z|) / 2: the constant is a part of the form in which a ReLU is written.
            activation, after, at = leaky_relu(activation.leaky[0]), IDENTITY, signal.at
        place = (signal.node, signal.key, signal.path, signal.base, at)
        if place not in self.settled:
            before = self._line(signal.node, signal.base, path, signal.base_at)
            node = self.add("nonlinear", (before,), path, at, activation=activation, detail=signal.key[0])
            self.settled[place] = node.node
        return self._line(self.settled[place], after, path, signal.at)

    def _line(self, node: int, line: Line, path: str, at: fx.Node | None) -> int:
        """A node times and plus constants; one for each."""
        factor, offset = line
        place = (node, line)
        if line == IDENTITY or place in self.settled:
            return self.settled.get(place, node)
        last = node
        if factor != 1:
            last = self.add("scale", (last,), path, None if offset else at, weights=(factor,), detail="constant").node
        if offset:
            last = self.add("shift", (last,), path, at, weights=(offset**2, offset), detail="constant").node
        self.settled[place] = last
        return last


def _is_line(line: Line, other: Line) -> bool:
    return all(abs(a - b) < 1e-9 for a, b in zip(line, other, strict=True))


def recognized(signal: Signal, module: nn.Module) -> Activation | None:
    """The activation of a single operation whose closed form or exact function is known."""
    if type(module).__module__ == nn.modules.activation.__name__:
        return as_activation(module)
    name, (first, *rest), keywords = signal.key[0], signal.key[1], dict(signal.key[2])
    if first != "z" or (rest != [] and name not in ("leaky_relu", "gelu", "elu")):
        return None
    if name == "leaky_relu":
        slope = rest[0] if rest else 0.01
        return as_activation(nn.LeakyReLU(float(slope)))
    if name == "gelu":
        return as_activation("gelu_tanh" if keywords.get("approximate") == "tanh" else "gelu")
    if name == "elu":
        return as_activation("elu") if not rest or rest == [1.0] else None
    return as_activation(name) if name in EXACT and not keywords else None


def linear_of(name: str, args: Any, kwargs: Any) -> Line | None:
    """(a, b) of an operation that is a z + b for the source z of its signals."""
    unknown = any(isinstance(value, Signal) and value.linear is None for value in args)
    if name not in LINEAR or unknown or kwargs.get("rounding_mode"):
        return None
    lines: list[Line] = []
    for value in args[:2]:
        plain = value.detach() if isinstance(value, Tensor) else value
        line = value.linear if isinstance(value, Signal) else (0.0, float(plain))
        assert line is not None
        lines.append(line)
    if name == "neg":
        return -lines[0][0], -lines[0][1]
    (a, b), (c, d) = lines
    if name in ("add", "sub", "rsub"):
        alpha = float(kwargs.get("alpha", 1))
        if name == "rsub":
            (a, b), (c, d) = (c, d), (a, b)
        sign = alpha if name == "add" else -alpha
        return a + sign * c, b + sign * d
    if name == "mul" and (a == 0 or c == 0):
        return a * d + b * c, b * d
    if name == "div" and c == 0:
        return a / d, b / d
    return None


def _without_factor(signal: Signal) -> tuple[Signal, float]:
    """A signal without the factor that it was multiplied by last, and that factor."""
    factor, offset = signal.linear or signal.after
    if offset:
        return signal, 1.0
    if signal.linear is not None:
        return Signal(signal.node, at=signal.at), factor
    return replace(signal, after=IDENTITY, at=signal.inner_at), factor


def _as_identity(value: Any) -> Any:
    """A signal as if it were the source of what comes next."""
    return replace(value, linear=IDENTITY) if isinstance(value, Signal) else value


def _keyed(value: Any, base: Line) -> Any:
    """A hashable form of arguments, in which the values of the base are "z"."""
    if isinstance(value, Signal):
        if value.linear is not None:
            return "z" if value.linear == base else ("line", *value.linear)
        return (value.key, value.after, value.base)
    if isinstance(value, list | tuple):
        return tuple(_keyed(item, base) for item in value)
    if isinstance(value, dict):
        return tuple((key, _keyed(item, base)) for key, item in sorted(value.items()))
    return float(value.detach()) if isinstance(value, Tensor) and value.numel() == 1 else value
