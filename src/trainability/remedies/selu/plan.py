"""Self-normalizing networks: SELU in the place of the activations of an existing model."""

from functools import partial
from typing import Any

from torch import fx, nn

from trainability.errors import ArgumentError
from trainability.introspect.activation_calls import find_activation_calls
from trainability.introspect.activation_table import GATES, VARYING
from trainability.introspect.activations import MODULES, is_nonlinearity
from trainability.introspect.dataflow import check_not_quantized
from trainability.introspect.rewrite import RewrittenForward, Traced, replace_module, trace
from trainability.introspect.select import Where, select
from trainability.introspect.torch_private import DropoutNd
from trainability.remedies.changes import Change, Changes, Plan, nested_tensor_changes
from trainability.remedies.initialization import Init
from trainability.remedies.selu import SELU
from trainability.remedies.shaping.regions import Region, regions

_GATES = tuple(kind for kind, row in MODULES.items() if row.name in GATES - VARYING)


def plan(remedy: SELU, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """Plan one change per activation, and one per weight layer."""
    for path, module in model.named_modules():
        check_not_quantized(path, module)
    selection = select(model, where, inputs=inputs)
    skipped = {
        path: reason
        for path, reason in selection.skipped.items()
        if where is not None or is_nonlinearity(model.get_submodule(path))
    }
    activations: Changes = []
    for path in (place.path for place in selection.places if not place.kind and not place.given):
        module = model.get_submodule(path)
        if not is_nonlinearity(module):
            if where is not None:
                skipped[path] = f"{type(module).__name__} is no activation"
        elif isinstance(module, nn.SELU):
            skipped[path] = "it is SELU already"
        elif where is None and _may_be_gated(model, path, module):
            skipped[path] = f"{type(module).__name__} may be a gate; name it with where= if it is not"
        else:
            trained = any(True for _ in module.parameters())
            why = "it keeps mean 0 and variance 1" + ("; what it learned is dropped" if trained else "")
            change = Change(path, type(module).__name__, "SELU", why)
            activations.append((change, partial(replace_module, model, module, nn.SELU())))
    if where is None:
        activations += _called(model, inputs, skipped)
    if not activations:
        return Plan([], skipped)
    for path, module in model.named_modules():
        if isinstance(module, DropoutNd) and module.p > 0:
            skipped[path] = f"{type(module).__name__} moves mean and variance, which AlphaDropout keeps"
    weights = Init("lecun").plan(model, None, inputs) if remedy.init and where is None else Plan([], {})
    notes: tuple[str, ...] = ()
    if remedy.init and where is not None:
        notes = ("the weights are kept, as where= chooses activations; Init('lecun') draws those of chosen layers",)
    changes = [*weights.changes, *activations, *nested_tensor_changes(model)]
    return Plan(changes, {**weights.skipped, **skipped}, notes)


def _called(model: nn.Module, inputs: Any, skipped: dict[str, str]) -> Changes:
    """Changes of the activations that are called as functions."""
    calls = find_activation_calls(model, inputs)
    if calls is None or not calls.callers:
        return []
    if inputs is None:
        raise ArgumentError(
            "this model calls activations as functions, and has to run for them to be replaced: "
            "apply_(model, remedy, inputs=x)",
            code="inputs-needed",
        )
    changes: Changes = []
    for path in sorted(calls.callers):
        module = model.get_submodule(path)
        traced = trace(model, path, inputs)
        replaced: list[str] = []
        for graph in traced.graphs.values():
            found = [region for region in regions(module, graph, traced.constants) if _is_called(region)]
            put: dict[fx.Node, fx.Node] = {}
            for region in found:
                region.replace(graph, "selu", put)
            graph.lint()
            replaced = [region.node.detail for region in found]
        if replaced:
            change = Change(f"{path}.selu".lstrip("."), ", ".join(replaced), "SELU", "called in its forward")
            changes.append((change, partial(_rewrite, module, traced)))
        else:
            skipped[path] = "the functions that its forward calls may be gates"
    return changes


def _may_be_gated(model: nn.Module, path: str, module: nn.Module) -> bool:
    """True of a bounded activation that may be multiplied by something: not where a Sequential goes on with it."""
    parent = model.get_submodule(path.rpartition(".")[0])
    goes_on = isinstance(parent, nn.Sequential) and list(parent._modules.values())[-1] is not module
    return isinstance(module, _GATES) and not isinstance(module, nn.ReLU6) and not goes_on


def _is_called(region: Region) -> bool:
    """True of an activation of torch.nn.functional that cannot be a gate."""
    name = region.node.detail
    return region.node.kind == "nonlinear" and hasattr(nn.functional, name) and name not in GATES


def _rewrite(module: nn.Module, traced: Traced) -> None:
    module.add_module("selu", nn.SELU().train(module.training))
    module.forward = RewrittenForward(module, traced)
