"""Trying a plan of shaping on a copy of the model, and reading from the copy whether it became what was meant."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trainability.errors import UnsupportedModelError
from trainability.kernels import Activation, Graph, Node, maps
from trainability.kernels.read import read
from trainability.layers import Where
from trainability.observe import observing
from trainability.remedies.apply import Plan
from trainability.remedies.shaper import Shaper, Shaping


def plan_tried(remedy: Shaping, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """The plan for a model, after it was carried out on a copy and the copy was read.

    Raises:
        UnsupportedModelError: the copy cannot be read any more, or has another graph than was meant.
    """
    shaper = Shaper(remedy, model, where, inputs)
    plan = shaper.plan()
    with observing(model):  # the random state is put back
        try:
            twin = copy.deepcopy(model)
        except Exception as error:  # whatever a model holds may not be made to be copied
            raise UnsupportedModelError(
                "", f"it cannot be copied, and so a change of it cannot be tried ({type(error).__name__}: {error})"
            ) from error
    changes, _ = Shaper(replace(remedy, init=None), twin, where, inputs).plan()
    with torch.no_grad():
        for _, change in changes:
            change()
    path = _difference(_essence(shaper.expected), _essence(read(twin, inputs)))
    if path is not None:
        raise UnsupportedModelError(
            path,
            "shaping it would not give the network that was meant, because of what its forward does there; make every "
            "activation and addition in it a module of its own, used once",
        )
    return plan


def _essence(graph: Graph) -> list[Node]:
    """The nodes that do something to a kernel."""
    kept: list[Node] = []
    position: dict[int, int] = {}
    for k, node in enumerate(graph.nodes):
        inputs = tuple(position[i] for i in node.inputs)
        identity = node.activation is not None and node.activation.name == "identity"
        if node.kind in ("pass", "normalise") or identity:
            position[k] = inputs[0]
            continue
        position[k] = len(kept)
        kept.append(Node(node.kind, inputs, node.path, node.weights, node.activation))
    return kept


def _difference(meant: list[Node], found: list[Node]) -> str | None:
    """Path of the first node in which two graphs differ."""
    for a, b in zip(meant, found, strict=False):
        if (a.kind, a.inputs) != (b.kind, b.inputs) or (a.kind == "sum" and not _close(a.weights, b.weights)):
            return a.path
        if a.activation is not None and b.activation is not None and not _same(a.activation, b.activation):
            return a.path
    return None if len(meant) == len(found) else (meant or found)[-1].path


def _same(a: Activation, b: Activation) -> bool:
    return a is b or _close(*((maps.mean(phi), maps.q_map(phi), maps.q_map(phi, 2.0)) for phi in (a, b)))


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-6 * (1 + abs(x)) for x, y in zip(a, b, strict=True))
