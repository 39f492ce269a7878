"""In which order the modules of a model run, what feeds them, and which of them have weights to work with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainability.activations import is_weight_layer
from trainability.errors import UnsupportedModelError
from trainability.observe import call, observing
from trainability.taps import tensors_in


@dataclass
class Calls:
    """What one pass showed; without a pass, what the order of definition and `nn.Sequential` say."""

    ran: list[str]  # paths, in the order of their first call
    fed_by: dict[str, str]  # path -> path of the module that returned its input
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # of input and output
    from_inputs: set[str] = field(default_factory=set)  # modules that take the model's own inputs
    final: set[str] = field(default_factory=set)  # modules that return the model's output
    overwrites: set[str] = field(default_factory=set)  # modules that change their input in place
    complete: bool = True  # whether there was a pass


def watch_calls(model: nn.Module, inputs: Any) -> Calls:
    """Run a model once on ``inputs``, unobserved and in evaluation mode; without inputs, go by its definition."""
    return _by_definition(model) if inputs is None else _by_running(model, inputs)


def _by_definition(model: nn.Module) -> Calls:
    paths = [path for path, _ in model.named_modules()]
    fed_by: dict[str, str] = {}
    for path, module in model.named_modules():
        if type(module).forward is nn.Sequential.forward:
            names = [f"{path}.{name}".lstrip(".") for name in module._modules]
            fed_by |= dict(zip(names[1:], names[:-1], strict=True))
    return Calls(paths, fed_by, complete=False)


def _by_running(model: nn.Module, inputs: Any) -> Calls:
    found = Calls([], {})
    given = {id(tensor) for tensor in tensors_in(inputs)}
    makers: dict[int, tuple[str, Tensor]] = {}  # the tensor too, since the number of a dead one is used again
    versions: dict[str, tuple[Tensor, int]] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = first_tensor(args, kwargs)
            if path in found.ran or x is None:
                return
            found.ran.append(path)
            versions[path] = (x, x._version)
            if id(x) in makers:
                found.fed_by[path] = makers[id(x)][0]
            elif id(x) in given:
                found.from_inputs.add(path)
            found.shapes[path] = (tuple(x.shape), ())

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if path not in versions or not isinstance(output, Tensor):
                return
            x, version = versions[path]
            if x._version != version:
                found.overwrites.add(path)
            makers.setdefault(id(output), (path, output))  # the innermost of those that return it
            found.shapes[path] = (found.shapes[path][0], tuple(output.shape))

        return hook

    handles = []
    try:
        with observing(model), torch.no_grad():
            model.eval()
            for path, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
                handles.append(module.register_forward_hook(after(path)))
            output = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in tensors_in(output):
        if id(tensor) in makers:
            found.final.add(makers[id(tensor)][0])
    return found


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor that a module was called with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def weight_layers(model: nn.Module, calls: Calls) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The weight layers of a model in the order in which they run, and those that are left out, with the reason.

    Raises:
        UnsupportedModelError: a quantised one, which has no weights to train.
    """
    found: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    modules = dict(model.named_modules())
    for path in calls.ran:
        check_not_quantised(path, modules[path])
        if is_weight_layer(modules[path]):
            if features_in(modules[path]) is None:
                skipped[path] = f"{type(modules[path]).__name__} has weights of another kind"
            else:
                found[path] = modules[path]
    for path, module in modules.items():
        check_not_quantised(path, module)
        parent = modules.get(path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention) and is_weight_layer(module):
            found.pop(path, None)
            skipped[path] = "MultiheadAttention uses its weight directly and does not call it"
        elif is_weight_layer(module) and path not in found and path not in skipped:
            skipped[path] = "it did not run on these inputs"
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention | nn.Bilinear):
            skipped[path] = f"{type(module).__name__} has weights of another kind"
    return found, skipped


def features_in(module: nn.Module) -> int | None:
    """Neurons or channels that a weight layer takes; None for a kind that is not known."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels
    weight = module._parameters.get("weight")
    return weight.shape[0] if weight is not None and hasattr(module, "nf") and weight.dim() == 2 else None


def features_out(module: nn.Module) -> int:
    """Neurons or channels that a weight layer gives."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels
    return int(module.nf)  # type: ignore[arg-type]


def check_not_quantised(path: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError for a layer whose weights are integers, or packed."""
    own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    weight = next((t for t in own if t is module._parameters.get("weight") or t is module._buffers.get("weight")), None)
    packed = ".quantized" in type(module).__module__ or (
        weight is not None and weight.dim() >= 2 and not (weight.is_floating_point() or weight.is_complex())
    )
    if packed:
        raise UnsupportedModelError(
            path,
            f"{type(module).__name__} is quantised and has no weights to train; change the model before that",
        )


def check_free(path: str, module: nn.Module, name: str) -> None:
    """Raise UnsupportedModelError where a module has something of a name already."""
    if hasattr(module, name):
        raise UnsupportedModelError(path, f"it has {name!r} already; undo that first")
