"""A network as a graph of what matters to its kernel, and the subnetwork-maximizing function of that graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any, Literal

from trainability.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from trainability.introspect.norms import BATCH_NORM_OPERATIONS
from trainability.signal.activation import Activation
from trainability.signal.operations import MAXIMA

_DEEPEST = 1_000_000

Kind = Literal["input", "affine", "nonlinear", "sum", "concat", "scale", "shift", "pass", "normalize", "output"]


@dataclass(frozen=True)
class Node:
    """One operation on the signal.

    Attributes:
        kind: ``affine`` (a weight layer), ``nonlinear``, ``sum`` (weighted), ``concat`` (of features), ``scale`` and
            ``shift`` (by constants or parameters), ``pass`` (pooling, reshaping, dropout at evaluation),
            ``normalize``, ``input`` and ``output``.
        inputs: positions in the graph of what it takes.
        path: the module that it belongs to.
        weights: of the summands; of a concatenation the shares of the features; of a scale its root mean square.
        activation: of a nonlinear layer.
        detail: the operation, as PyTorch calls it; ``constant`` of a scale or shift by what is written in the code.
        weight: of an affine node, the name of the parameter that it multiplies by.
        derived: whether that is changed on the way (standardized, scaled, masked).
        at: the recorded operation that gives its values.
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    path: str = ""
    weights: tuple[float, ...] = ()
    activation: Activation | None = None
    detail: str = ""
    weight: str = ""
    derived: bool = False
    at: Any = field(default=None, repr=False, compare=False)

    def mix(self, values: Sequence[float]) -> float:
        """C value of a sum or concatenation of summands of equal q, from theirs."""
        shares = self.weights if self.kind == "concat" else [w * w for w in self.weights]
        return sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)


@dataclass(frozen=True)
class SignalGraph:
    """Nodes in order of execution; the last is the output.

    >>> graph = series(chain(2), residual(chain(3), shortcut=0.6), chain(1))
    >>> graph.depth, len(graph.nonlinear)
    (6, 6)
    """

    nodes: tuple[Node, ...]

    @property
    def nonlinear(self) -> tuple[Node, ...]:
        """The nonlinear layers."""
        return tuple(node for node in self.nodes if node.kind == "nonlinear")

    @cached_property
    def depth(self) -> int:
        """Nonlinear layers on the longest way through the network."""
        depths: list[int] = []
        for node in self.nodes:
            below = max((depths[i] for i in node.inputs), default=0)
            depths.append(below + (node.kind == "nonlinear"))
        return max(depths, default=0)

    def maximum(self, r: Callable[[float], float], start: float) -> float:
        """The subnetwork-maximizing function M(start): r stands for every nonlinear layer's C map.

        Affine layers, pooling and the like leave a C value as it is, and a normalized sum mixes those of its summands
        by the squares of its weights. A subnetwork is a part of the network with one way in and one way out: the
        whole, a residual branch alone, a block inside a block. The maximum is taken over all of them. r has to be
        increasing and r(x) ≥ x, as the slope, the curvature and the C map of a leaky ReLU are, so that of the parts
        in a row the whole row is the largest.

        Reference: Martens et al. (2021), section 5; Zhang, Botev and Martens (2022), appendix B.

        >>> chain(50).maximum(lambda y: 0.1 + y, 0.0) == sum([0.1] * 50)
        True
        """
        largest = start
        split = self._split
        for first, nodes in split._parts:
            values = {first: start}
            for k in nodes:
                node = split.nodes[k]
                if k == first:
                    values[k] = r(start) if node.kind == "nonlinear" else start
                elif len(node.inputs) == 1:
                    value = values[node.inputs[0]]
                    values[k] = r(value) if node.kind == "nonlinear" else value
                elif node.kind == "output":
                    values[k] = max(values[i] for i in node.inputs)
                else:
                    values[k] = node.mix([values[i] for i in node.inputs])
            largest = max(largest, values[nodes[-1]])
        return largest

    @cached_property
    def _split(self) -> "SignalGraph":
        """The same graph with a node of its own on every way out of a fork, so that a branch has a way in."""
        users = [0] * len(self.nodes)
        for node in self.nodes:
            for i in node.inputs:
                users[i] += 1
        position: list[int] = []
        nodes: list[Node] = []
        for node in self.nodes:
            inputs = []
            for i in node.inputs:
                if users[i] > 1:
                    nodes.append(Node("pass", (position[i],)))
                    inputs.append(len(nodes) - 1)
                else:
                    inputs.append(position[i])
            nodes.append(replace(node, inputs=tuple(inputs)))
            position.append(len(nodes) - 1)
        return SignalGraph(tuple(nodes))

    @cached_property
    def _parts(self) -> list[tuple[int, list[int]]]:
        """For every longest row of parts with one way in and one way out: its first node, and its nodes in order.

        From i to j there is such a part where i dominates j and j postdominates i. The next after i in its row is its
        immediate postdominator, if that one's immediate dominator is i.
        """
        before: list[list[int]] = [list(node.inputs) for node in self.nodes]
        after: list[list[int]] = [[] for _ in self.nodes]
        for k, inputs in enumerate(before):
            for i in inputs:
                after[i].append(k)
        size = len(self.nodes)
        dominator = _immediate(range(size), before)
        postdominator = _immediate(range(size - 1, -1, -1), after)
        following = {i: p for i in range(size) if (p := postdominator[i]) is not None and p != i and dominator[p] == i}
        alone = {k for k, node in enumerate(self.nodes) if node.kind == "nonlinear"}
        heads = sorted((set(following) | alone) - set(following.values()))
        rows = [(head, self._between(head, _last(head, following), after)) for head in heads]
        return rows + self._from_forks(after, following)

    def _from_forks(self, after: list[list[int]], following: dict[int, int]) -> list[tuple[int, list[int]]]:
        """Parts that several, but not all, of the ways out of a fork lead into, as a block at the start of a branch."""
        parts = []
        for fork, ways in enumerate(after):
            if len(ways) < 3:
                continue
            for merge in range(fork + 1, len(self.nodes)):
                if len(self.nodes[merge].inputs) < 2:
                    continue
                nodes = self._between(fork, merge, after)
                inside = set(nodes)
                closed = all(
                    set(self.nodes[k].inputs) <= inside and (k == merge or set(after[k]) <= inside) for k in nodes[1:]
                )
                if nodes and closed and not set(ways) <= inside:  # no nodes: the fork does not reach it
                    end = _last(merge, following)
                    parts.append((fork, sorted({*nodes, *self._between(merge, end, after)})))
        return parts

    def _between(self, first: int, last: int, after: list[list[int]]) -> list[int]:
        reached = {first}
        for k in range(first, last):
            if k in reached:
                reached.update(after[k])
        needed = {last}
        for k in range(last, first, -1):
            if k in needed:
                needed.update(i for i in self.nodes[k].inputs if i in reached)
        return sorted(needed & reached)

    def summands(self, node: Node) -> list[int]:
        """The inputs of a node, without the summands whose weight is 0."""
        return (
            [i for i, w in zip(node.inputs, node.weights, strict=True) if w] if node.kind == "sum" else [*node.inputs]
        )

    def dependent(self, node: Node) -> bool:
        """True where summands come from one weight layer, or input, with no other weight layer between."""
        sources = [self._sources[i] for i in self.summands(node)]
        return any(a & b for k, a in enumerate(sources) for b in sources[:k])

    def check_sums(self, zero_mean: bool) -> None:
        """Raise UnsupportedModelError for a sum that the rule of squared weights does not hold for.

        Summands must come from different weight layers, or they depend on one another; and at most one of them may
        have a mean, which a nonlinear layer leaves that no weight layer follows, unless every nonlinear layer is
        shaped to have none (``zero_mean``).
        """
        for node in self.nodes:
            if node.kind != "sum":
                continue
            if self.dependent(node):
                raise UnsupportedModelError(
                    node.path,
                    "it adds two values that come from the same weight layer with no other between them, so they "
                    "depend on one another and the rule for sums does not hold; put a weight layer on one branch",
                    code="dependent-sum",
                )
            if sum(self._means[i] for i in self.summands(node)) > 1 and not zero_mean:
                raise UnsupportedModelError(
                    node.path,
                    "it adds two values that both end in a nonlinear layer, whose means add up and break the rule for "
                    "sums; end one of the branches in a weight layer, or use DKS, under which the means are zero",
                    code="sum-of-means",
                )

    def carries_mean(self, node: Node) -> bool:
        """True for a node that takes values with a mean over the random weights."""
        return any(self._means[i] for i in self.summands(node))

    @cached_property
    def _sources(self) -> list[set[int]]:
        """Weight layers and inputs that reach each node without another weight layer between."""
        found: list[set[int]] = []
        for k, node in enumerate(self.nodes):
            fresh = node.kind in ("affine", "input")
            found.append({k} if fresh else set().union(*(found[i] for i in self.summands(node))))
        return found

    @cached_property
    def _means(self) -> list[bool]:
        """For each node, whether its values have a mean over the random weights."""
        found: list[bool] = []
        for node in self.nodes:
            below = any(found[i] for i in self.summands(node))
            # Not by BatchNorm, which shaping refuses or takes out.
            centered = node.kind == "normalize" and node.detail not in BATCH_NORM_OPERATIONS | {"rms_norm"}
            stays = below and node.kind not in ("affine", "input") and not centered
            found.append(node.kind == "nonlinear" or stays)
        return found

    @cached_property
    def gaussian(self) -> list[bool]:
        """For each node, whether its values are normal of mean 0 over random weights: of affine nodes and sums."""
        found: list[bool] = []
        for node in self.nodes:
            below = all(found[i] for i in self.summands(node))
            if node.kind == "sum":
                found.append(below and not self.dependent(node))
            else:
                passes = node.kind in ("pass", "scale") and node.detail not in MAXIMA
                found.append(node.kind in ("affine", "input") or (passes and below))
        return found


def _immediate(order: Sequence[int], sources: Sequence[Sequence[int]]) -> list[int | None]:
    """Immediate dominators of an acyclic graph whose nodes come in topological ``order``; None for what has none."""
    rank = {k: i for i, k in enumerate(order)}
    immediate: list[int | None] = [None] * len(rank)
    for k in order:
        common: int | None = None
        for i, source in enumerate(sources[k]):
            other: int | None = source
            if i == 0:
                common = other
            while common != other:
                if common is None or other is None:
                    common = None
                    break
                if rank[common] > rank[other]:
                    common = immediate[common]
                else:
                    other = immediate[other]
            if common is None:
                break
        immediate[k] = common
    return immediate


def _last(head: int, following: dict[int, int]) -> int:
    while head in following:
        head = following[head]
    return head


def chain(depth: int, activation: Activation | None = None) -> SignalGraph:
    """A plain network: ``depth`` nonlinear layers, a weight layer before each and one after the last.

    >>> chain(3).depth
    3
    """
    if not isinstance(depth, int) or not 1 <= depth <= _DEEPEST:
        raise ArgumentError(f"a chain has 1 to {_DEEPEST:,} nonlinear layers (depth is {depth!r})", code="depth")
    nodes = [Node("input")]
    for k in range(depth):
        nodes.append(Node("affine", (len(nodes) - 1,), f"affine.{k}"))
        nodes.append(Node("nonlinear", (len(nodes) - 1,), f"nonlinear.{k}", activation=activation))
    nodes.append(Node("affine", (len(nodes) - 1,), f"affine.{depth}"))
    return SignalGraph((*nodes, Node("output", (len(nodes) - 1,))))


def series(*graphs: SignalGraph) -> SignalGraph:
    """One network after the other."""
    nodes: list[Node] = [Node("input")]
    for graph in graphs:
        nodes += _moved(graph, entry=len(nodes) - 1, offset=len(nodes))
    return SignalGraph((*nodes, Node("output", (len(nodes) - 1,))))


def residual(branch: SignalGraph, shortcut: float) -> SignalGraph:
    """shortcut · x + √(1 - shortcut²) · branch(x).

    >>> residual(chain(2), shortcut=0.6).maximum(lambda y: 2 * y, 1.0)  # of the branch; the whole has 0.36 + 0.64 · 4
    4.0
    """
    if not isinstance(shortcut, int | float) or not 0 <= shortcut <= 1:
        raise ArgumentError(f"the shortcut's weight lies between 0 and 1 (it is {shortcut!r})", code="shortcut")
    nodes = [Node("input"), *_moved(branch, entry=0, offset=1)]
    nodes.append(Node("sum", (0, len(nodes) - 1), weights=(shortcut, (1 - shortcut**2) ** 0.5)))
    return SignalGraph((*nodes, Node("output", (len(nodes) - 1,))))


def _moved(graph: SignalGraph, entry: int, offset: int) -> list[Node]:
    """The inner nodes of a graph, its input being ``entry`` and its first inner node ``offset``."""
    if not isinstance(graph, SignalGraph):
        raise ArgumentTypeError(f"a network is a graph, such as chain(50), not {graph!r}", code="graph")
    if not graph.nodes:
        raise ArgumentError("the graph has no nodes", code="graph")
    numbers = count(offset)
    position = {k: entry if node.kind == "input" else next(numbers) for k, node in enumerate(graph.nodes[:-1])}
    if graph.nodes[-1].inputs != (len(graph.nodes) - 2,):
        raise ArgumentError("only networks whose one output is the last node can be joined", code="several-outputs")
    return [
        replace(node, inputs=tuple(position[i] for i in node.inputs))
        for node in graph.nodes[:-1]
        if node.kind != "input"
    ]
