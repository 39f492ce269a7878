"""Constants beside sums as weights of the sums, and sums of sums as one."""

from collections.abc import Sequence
from dataclasses import replace

from trainability.signal.activation import Activation
from trainability.signal.graph import Node


def folded(nodes: Sequence[Node], ends: Sequence[int]) -> tuple[list[Node], list[int]]:
    """The same network with every constant factor beside a sum in its weights, and without what no end needs.

    K (x + h), K x + K h and (x + h) / (1 / K) become one and the same. A sum that a further addition alone takes
    becomes a part of it: x + a(x) + b(x) has three summands. Constants beside an activation that no sum takes are a
    part of the activation. All this holds within one module's code.

    Args:
        nodes: in order of execution.
        ends: positions of the outputs.

    Returns:
        The nodes, and the positions of the outputs among them.

    >>> x, h = Node("input"), Node("affine", (0,))
    >>> total, scaled = Node("sum", (0, 1), weights=(1.0, 1.0)), Node("scale", (2,), weights=(0.5,), detail="constant")
    >>> folded([x, h, total, scaled], [3])[0][-1].weights
    (0.5, 0.5)
    """
    nodes, ends = _needed(nodes, ends)
    users: list[list[int]] = [[] for _ in nodes]
    for k, node in enumerate(nodes):
        for i in node.inputs:
            users[i].append(k)
    for end in ends:
        users[end].append(len(nodes))
    kept: list[Node] = []
    alone: list[bool] = []  # whether one other takes it
    position: list[int] = []
    shaped: dict[tuple[int, str, float], Activation] = {}
    for k, read_node in enumerate(nodes):
        node = replace(read_node, inputs=tuple(position[i] for i in read_node.inputs))
        while node.kind == "nonlinear" and alone[node.inputs[0]] and _is_constant(kept[node.inputs[0]], node.path):
            before = kept[node.inputs[0]]
            node = replace(node, inputs=before.inputs, activation=_with(node, before, "input", shaped))
        user = nodes[users[k][0]] if len(users[k]) == 1 and users[k][0] < len(nodes) else None
        into_sum = user is not None and user.kind == "sum" and node.kind == "scale" and _is_constant(node, user.path)
        merged = None
        if node.inputs and alone[node.inputs[0]] and _is_constant(node, kept[node.inputs[0]].path):
            before = kept[node.inputs[0]]
            if before.kind == "sum" and node.kind == "scale":
                merged = replace(before, weights=tuple(w * node.weights[0] for w in before.weights), at=node.at)
            elif before.kind == "nonlinear" and not into_sum:
                merged = replace(before, activation=_with(before, node, "output", shaped), at=node.at)
        if merged is None:
            position.append(len(kept))
            kept.append(_flat(node, kept, alone) if node.kind == "sum" else node)
            alone.append(len(users[k]) == 1)
        else:
            position.append(node.inputs[0])
            kept[node.inputs[0]] = merged
            alone[node.inputs[0]] = len(users[k]) == 1
    return _needed(kept, [position[k] for k in ends])


def _is_constant(node: Node, path: str) -> bool:
    return node.kind in ("scale", "shift") and node.detail == "constant" and node.path == path


def _with(node: Node, constant: Node, side: str, known: dict[tuple[int, str, float], Activation]) -> Activation:
    """The activation of a node with a constant before it ("input") or after it ("output"); one for each."""
    phi = node.activation
    assert phi is not None
    value = constant.weights[0] if constant.kind == "scale" else constant.weights[1]
    place = (id(phi), side + constant.kind, value)
    if place not in known:
        known[place] = replace(phi.shaped({f"{side}_{constant.kind}": value}), name=phi.name)
    return known[place]


def _flat(node: Node, kept: list[Node], alone: list[bool]) -> Node:
    """A sum with the factors, and the sums, that it takes put into it."""
    open_ = list(zip(node.inputs, node.weights, strict=True))
    summands: dict[int, float] = {}
    while open_:
        i, weight = open_.pop(0)
        before = kept[i]
        if before.kind == "scale" and _is_constant(before, node.path):
            open_.insert(0, (before.inputs[0], weight * before.weights[0]))
        elif before.kind == "sum" and before.path == node.path and alone[i]:
            open_ = [(j, weight * w) for j, w in zip(before.inputs, before.weights, strict=True)] + open_
        else:
            summands[i] = summands.get(i, 0.0) + weight
    return replace(node, inputs=tuple(summands), weights=tuple(summands.values()))


def _needed(nodes: Sequence[Node], ends: Sequence[int]) -> tuple[list[Node], list[int]]:
    needed = set(ends)
    for k in range(len(nodes) - 1, -1, -1):
        if k in needed:
            needed.update(nodes[k].inputs)
    position = {k: i for i, k in enumerate(sorted(needed))}
    kept = [replace(nodes[k], inputs=tuple(position[i] for i in nodes[k].inputs)) for k in position]
    return kept, [position[k] for k in ends]
