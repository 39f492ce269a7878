"""Trial of a plan of shaping on a copy of the model, which has to become what was meant and do what was predicted."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.run import observing
from trainability.introspect.select import Where
from trainability.introspect.torch_private import tree_leaves, tree_map
from trainability.remedies.changes import Plan
from trainability.remedies.shaping import Shaping
from trainability.remedies.shaping.check import check, with_scales
from trainability.remedies.shaping.shaper import Shaper
from trainability.signal import Activation, Node, SignalGraph, maps
from trainability.signal.reading import read_recorded
from trainability.signal.recording import Recording

_SAMPLES = 8  # of the inputs, in a check


def plan(remedy: Shaping, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """The plan for a model, after it was carried out on a copy, with the check of that copy.

    There is no check where tensors have no values (on the meta device).

    Raises:
        UnsupportedModelError: the copy cannot be read any more, or has another graph than was meant.
    """
    shaper = Shaper(remedy, model, where, inputs)
    planned = shaper.plan()
    with observing(model):  # the random state is put back
        twin = _copied(model)
        trial = Shaper(remedy, twin, where, inputs)
        changes = trial.plan().changes
        with torch.no_grad():
            for _, change in changes:
                change()
        graph, recording = _read(twin, inputs)
        path = _difference(_essence(shaper.expected), _essence(graph))
        if path is not None:
            raise UnsupportedModelError(
                path,
                "once shaped, it would not compute the intended network, because of what its forward does there; make "
                "every activation and addition in it a module of its own, used once",
                code="not-as-meant",
            )
        if any(t.is_meta for t in (*twin.parameters(), *recording.inputs.values())):
            return planned
        factors = _factors(twin, inputs, graph, trial)
        if factors:
            planned = Shaper(remedy, model, where, inputs, factors).plan()
        draws = [*trial.draws, *(_scaled(twin, name, factor) for name, factor in factors.items())]
        meant = with_scales(graph, trial.scales)
        # What `where` leaves out keeps its weights and activations, of which the theory says nothing.
        redrawn = remedy.init is not None and where is None
        checked = check(meant, recording, draws, redrawn, borders=not trial.shaping)
        return Plan(planned.changes, planned.skipped, planned.notes, checked)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a model holds may not be made to be copied
        raise UnsupportedModelError(
            "",
            f"it cannot be copied, which is needed to try the change ({type(error).__name__}: {error})",
            code="not-copyable",
        ) from error


def _read(twin: nn.Module, inputs: Any) -> tuple[SignalGraph, Recording]:
    """The graph of a copy, on eight samples if it runs on those."""
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()]
    sizes = {len(t) for t in leaves}
    if len(sizes) == 1 and not any(t.is_meta for t in leaves):
        chosen = torch.arange(_SAMPLES) % sizes.pop()
        try:
            return read_recorded(twin, tree_map(lambda t: t[chosen.to(t.device)] if _is_batch(t) else t, inputs))
        except UnsupportedModelError:  # it may be made for one size of a batch
            pass
    return read_recorded(twin, inputs)


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _factors(twin: nn.Module, inputs: Any, graph: SignalGraph, trial: Shaper) -> dict[str, float]:
    """Factors of weights that forward changes, with which what multiplies the signal has the scale meant.

    Those that this does not help, such as standardized ones, are left.
    """
    wanted = {n.weight: math.sqrt(trial.scales[n.weight][0] / n.weights[0]) for n in _derived(graph, trial)}
    wanted = {name: factor for name, factor in wanted.items() if math.isfinite(factor) and abs(factor - 1) > 0.01}
    if not wanted:
        return {}
    for name, factor in wanted.items():
        _scaled(twin, name, factor)()
    reached, _ = _read(twin, inputs)
    found = {}
    for node in _derived(reached, trial):
        if node.weight in wanted and abs(node.weights[0] / trial.scales[node.weight][0] - 1) < 0.05:
            found[node.weight] = wanted[node.weight]
    return found


def _derived(graph: SignalGraph, trial: Shaper) -> list[Node]:
    return [node for node in graph.nodes if node.derived and node.weight in trial.scales and node.weights[0] > 0]


def _scaled(twin: nn.Module, name: str, factor: float) -> Any:
    def scale() -> None:
        with torch.no_grad():
            twin.get_parameter(name).mul_(factor)

    return scale


def _essence(graph: SignalGraph) -> list[Node]:
    """The nodes that do something to a signal."""
    kept: list[Node] = []
    position: dict[int, int] = {}
    for k, node in enumerate(graph.nodes):
        inputs = tuple(position[i] for i in node.inputs)
        identity = node.activation is not None and node.activation.name == "identity"
        if node.kind in ("pass", "normalize") or identity:
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
