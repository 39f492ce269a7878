"""Independent-component layers in front of the weight layers of an existing model."""

from functools import partial
from typing import Any, cast

import torch
from torch import nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.dataflow import OUTPUT, Calls, check_free, watch_calls, weight_layers
from trainability.introspect.rewrite import replace_module
from trainability.introspect.select import Where
from trainability.introspect.torch_private import BatchNormNd
from trainability.introspect.weight_layers import weight_layout
from trainability.nn.ic import ICLayer, Kind
from trainability.nn.norms import FeatureBatchNorm
from trainability.nn.shaped_activation import ShapedActivation
from trainability.remedies.changes import Change, Changes, Plan, chosen_weight_layers, nested_tensor_changes
from trainability.remedies.ic import IC

_DIMS: dict[int, Kind] = {1: "1d", 2: "2d", 3: "3d"}


def plan(remedy: IC, model: nn.Module, where: Where | None, inputs: Any) -> Plan:
    """Plan one change per weight layer, and one per BatchNorm that goes."""
    for path, module in model.named_modules():
        if isinstance(module, ShapedActivation):
            raise UnsupportedModelError(
                path, "it is shaped, which the BatchNorm of an IC layer would undo", code="shaped"
            )
    calls = watch_calls(model, inputs)
    layers, skipped = weight_layers(model, calls)
    order = list(layers)
    if where is None:
        for number, path in enumerate(order):
            if number == 0 or path in calls.from_inputs:
                skipped[path] = "a first weight layer: it takes the inputs"
                del layers[path]
    wanted = chosen_weight_layers(model, where, layers, skipped)
    layers = {path: module for path, module in layers.items() if path in wanted}
    norms = _norms_that_go(model, calls, layers, order, skipped) if remedy.batchnorm == "remove" else {}
    changes: Changes = []
    heirs: set[str] = set()
    for path, module in layers.items():
        check_free(path, module, "ic")
        layer = _layer(remedy, path, module, calls)
        why = f"before {type(module).__name__}"
        fed_by = calls.fed_by.get(path, "")
        if fed_by in norms and _is_alike(norms[fed_by], layer, calls.shapes.get(fed_by)):
            _take_over(layer.norm, norms[fed_by])
            heirs.add(fed_by)
            why += f", with scale, shift and statistics of {fed_by}"
        what = f"ICLayer({layer.norm.num_features}, keep={remedy.keep:g})"
        changes.append((Change(f"{path}.ic", "nothing", what, why), partial(_put_before, module, layer)))
    for path, norm in norms.items():
        substitute = partial(replace_module, model, norm, nn.Identity())
        changes.append((_removal(path, norm, path in heirs), substitute))
    return Plan([*changes, *nested_tensor_changes(model)] if changes else changes, skipped)


def _layer(remedy: IC, path: str, module: nn.Module, calls: Calls) -> ICLayer:
    layout = weight_layout(module)
    assert layout is not None
    spatial = len(layout.kernel)
    kind = _DIMS[spatial] if spatial else "tokens"
    shape = calls.shapes[path][0] if path in calls.shapes else None
    if shape is not None and len(shape) < 2 + spatial:
        raise UnsupportedModelError(
            path, f"its input of shape {shape} has no batch dimension; pass inputs with one", code="not-a-batch"
        )
    layer = ICLayer(layout.inputs, remedy.keep, kind=kind, dropout=remedy.dropout, place=f"before {path}")
    like = next(module.parameters())
    return layer.to(like.device, like.dtype).train(module.training)


def _norms_that_go(
    model: nn.Module, calls: Calls, layers: dict[str, nn.Module], order: list[str], skipped: dict[str, str]
) -> dict[str, BatchNormNd]:
    """BatchNorms of which everything that is made goes through one of the new IC layers; why others stay."""
    norms = {
        path: module
        for path in calls.ran
        if isinstance(module := model.get_submodule(path), BatchNormNd)
        and not isinstance(model.get_submodule(path.rpartition(".")[0]), ICLayer)
    }
    if calls.feeds is None:
        return {path: norms[path] for path in _between(model, calls, norms, layers, order)}
    found: dict[str, BatchNormNd] = {}
    for path, norm in norms.items():
        consumers = calls.behind(path, norms)
        if not consumers:
            skipped[path] = "it stays: nothing is seen to take what it gives"
        elif OUTPUT in consumers:
            skipped[path] = "it stays: what it gives reaches the output of the model"
        elif others := sorted(consumers - layers.keys()):
            skipped[path] = f"it stays: {others[0]} takes what it gives, and has no IC layer"
        else:
            found[path] = norm
    return found


def _between(
    model: nn.Module, calls: Calls, norms: dict[str, BatchNormNd], layers: dict[str, nn.Module], order: list[str]
) -> list[str]:
    """The same by the order of definition: those between one of the layers and the weight layer before it."""
    found: list[str] = []
    since: list[str] = []
    for path in calls.ran:
        if path in order:
            found += since if path in layers else []
            since = []
        elif path in norms:
            since.append(path)
        elif isinstance(model.get_submodule(path), nn.RNNBase | nn.MultiheadAttention):
            since = []
    return found


def _is_alike(norm: BatchNormNd, layer: ICLayer, shapes: tuple[tuple[int, ...], tuple[int, ...]] | None) -> bool:
    """True of a BatchNorm that normalizes what the one of an IC layer will, and has its statistics."""
    along_last = layer.kind == "tokens" and shapes is not None and len(shapes[0]) != 2
    return norm.num_features == layer.norm.num_features and norm.track_running_stats and not along_last


def _take_over(own: FeatureBatchNorm, norm: BatchNormNd) -> None:
    """Let a BatchNorm go on where another one is."""
    state = norm.state_dict()
    own.load_state_dict({key: state.get(key, value) for key, value in own.state_dict().items()})
    own.eps, own.momentum = norm.eps, norm.momentum
    own.train(norm.training)
    for name, parameter in norm.named_parameters():
        own.get_parameter(name).requires_grad_(parameter.requires_grad)


def _removal(path: str, norm: BatchNormNd, inherited: bool) -> Change:
    weight, bias = (None, None) if norm.weight is None else (norm.weight.detach(), norm.bias.detach())
    if inherited:
        why = "the IC layer after it takes its place"
    elif weight is not None and not weight.is_meta and bool((weight != 1).any() or (bias != 0).any()):
        why = (
            f"its scale ({float(weight.min()):.3g} to {float(weight.max()):.3g}) and shift "
            f"({float(bias.min()):.3g} to {float(bias.max()):.3g}) are dropped: the IC layers after it stand elsewhere"
        )
    else:
        why = "IC layers normalize instead; its scale and shift were not trained"
    return Change(path, type(norm).__name__, "Identity", why)


def _put_before(module: nn.Module, layer: ICLayer) -> None:
    module.add_module("ic", layer)
    module.register_forward_pre_hook(_through_ic, with_kwargs=True)


def _through_ic(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Send the input of a weight layer through its IC layer first."""
    layer = cast(ICLayer, module.ic)
    if args:
        return (layer(args[0]), *args[1:]), kwargs
    name = next(key for key, value in kwargs.items() if isinstance(value, torch.Tensor))
    return args, {**kwargs, name: layer(kwargs[name])}
