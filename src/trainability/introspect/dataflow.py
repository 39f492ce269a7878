"""The order in which the modules of a model run, what feeds them, and which of them have weights to work with."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.hooks import tensors_in
from trainability.introspect.run import call, observing
from trainability.introspect.torch_private import RunningNorm, version_of
from trainability.introspect.weight_layers import is_weight_layer, weight_layout

OUTPUT = "(output)"
_TRAINED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OtherWeights = nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention | nn.Bilinear


@dataclass
class Calls:
    """The order and connections that one pass showed; without a pass, those of definition and `nn.Sequential`.

    ``feeds`` is for weight layers, BatchNorms and layers with weights of another kind: which of these take what one of
    them gives, whatever functions and other modules lie between; `OUTPUT` where it is the model's.
    """

    ran: list[str]  # paths, in the order of their first call
    fed_by: dict[str, str]  # path -> path of the module that returned its very input
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # of input and output
    from_inputs: set[str] = field(default_factory=set)  # modules that take the model's own inputs
    overwrites: set[str] = field(default_factory=set)  # modules that change their input in place
    feeds: dict[str, set[str]] | None = None  # None without a pass

    def behind(self, path: str, through: Iterable[str]) -> set[str]:
        """The modules that take the output of one, looking through some of those between."""
        assert self.feeds is not None
        open_, seen = [path], {path}
        found: set[str] = set()
        passing = set(through)
        while open_:
            for consumer in self.feeds.get(open_.pop(), ()):
                if consumer not in passing:
                    found.add(consumer)
                elif consumer not in seen:
                    seen.add(consumer)
                    open_.append(consumer)
        return found


def watch_calls(model: nn.Module, inputs: Any) -> Calls:
    """Run a model once on ``inputs``, unobserved and in evaluation mode; without inputs, go by its definition."""
    return _by_definition(model) if inputs is None else _FlowWatch(model).run(inputs)


def _by_definition(model: nn.Module) -> Calls:
    modules = dict(model.named_modules())
    fed_by: dict[str, str] = {}
    for path, module in modules.items():
        if type(module).forward is nn.Sequential.forward:
            paths = [f"{path}.{name}".lstrip(".") for name in module._modules]
            for before, after in pairwise(paths):
                fed_by[_innermost(model, after, 0)] = _innermost(model, before, -1)
    return Calls(list(modules), fed_by)


def _innermost(model: nn.Module, path: str, place: int) -> str:
    """The first (0) or last (-1) module within Sequentials within Sequentials."""
    module = model.get_submodule(path)
    while type(module).forward is nn.Sequential.forward and module._modules:
        name = list(module._modules)[place]
        path, module = f"{path}.{name}", module.get_submodule(name)
    return path


class _FlowWatch:
    """Follows tensors through one pass: by identity, and by the graph that autograd keeps of them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found = Calls([], {}, feeds={})
        self.makers: dict[int, tuple[str, Tensor, int]] = {}  # the tensor too, as the number of a dead one comes again
        self.given: set[int] = set()
        self.versions: dict[str, tuple[Tensor, int]] = {}
        self.leaves: dict[int, tuple[str, Tensor]] = {}

    def run(self, inputs: Any) -> Calls:
        self.given = {id(tensor) for tensor in tensors_in(inputs)}
        with observing(self.model), torch.enable_grad(), ExitStack() as hooks:
            self.model.eval()
            for path, module in self.model.named_modules():
                if isinstance(module, nn.TransformerEncoder):
                    module.use_nested_tensor = False
                hooks.enter_context(module.register_forward_pre_hook(partial(self._before, path), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(partial(self._after, path)))
            output = call(self.model, inputs)
        for tensor in tensors_in(output):
            self._trace(tensor, OUTPUT)
        return self.found

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _matters(module):
            for value in tensors_in((args, kwargs)):
                self._trace(value, path)
        x = first_tensor(args, kwargs)
        if path in self.found.ran:
            return
        self.found.ran.append(path)
        if x is None or x.is_nested:
            return
        self.versions[path] = (x, version_of(x))
        maker = self.makers.get(id(x))
        if maker is not None and maker[2] == version_of(x):  # not changed in place since
            self.found.fed_by[path] = maker[0]
        elif maker is None and id(x) in self.given:
            self.found.from_inputs.add(path)
        self.found.shapes[path] = (tuple(x.shape), ())

    def _after(self, path: str, module: nn.Module, _args: Any, output: Any) -> Any:
        if _matters(module):
            output = self._rooted(path, output)
        if path in self.versions:
            x, version = self.versions.pop(path)
            if version_of(x) != version:
                self.found.overwrites.add(path)
            if isinstance(output, Tensor) and not output.is_nested:
                known = self.makers.get(id(output))
                if known is None or known[2] != version_of(output):  # the innermost of those that return it
                    self.makers[id(output)] = (path, output, version_of(output))
                self.found.shapes[path] = (self.found.shapes[path][0], tuple(output.shape))
        return output

    def _rooted(self, path: str, output: Any) -> Any:
        """An output as the beginning of a graph of its own, by which it is known wherever it goes."""
        if isinstance(output, tuple):
            return type(output)(self._rooted(path, value) for value in output)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.is_nested:
            return output
        leaf = output.detach().requires_grad_()
        self.leaves[id(leaf)] = (path, leaf)
        return leaf.clone()  # which may be changed in place

    def _trace(self, tensor: Tensor, consumer: str) -> None:
        """Note whose outputs a tensor was made of."""
        assert self.found.feeds is not None
        open_: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
        seen: set[Any] = set(open_)
        while open_:
            node = open_.pop()
            leaf = self.leaves.get(id(getattr(node, "variable", None)))
            if leaf is not None:
                self.found.feeds.setdefault(leaf[0], set()).add(consumer)
            for before, _ in node.next_functions:
                if before is not None and before not in seen:
                    seen.add(before)
                    open_.append(before)


def _matters(module: nn.Module) -> bool:
    return is_weight_layer(module) or isinstance(module, RunningNorm | _OtherWeights)


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor that a module was called with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def weight_layers(model: nn.Module, calls: Calls) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The weight layers of a model in the order in which they run, and those that are left out, with the reason.

    Raises:
        UnsupportedModelError: a quantized one, which has no weights to train.
    """
    found: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    modules = dict(model.named_modules())
    for path in calls.ran:
        if is_weight_layer(modules[path]):
            if reason := unfit(modules[path]):
                skipped[path] = reason
            else:
                found[path] = modules[path]
    for path, module in modules.items():
        check_not_quantized(path, module)
        parent = modules.get(path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention) and is_weight_layer(module):
            found.pop(path, None)
            skipped[path] = "MultiheadAttention uses its weight directly and does not call it"
        elif is_weight_layer(module) and path not in found and path not in skipped:
            skipped[path] = "it did not run on these inputs"
        elif isinstance(module, _OtherWeights):
            skipped[path] = f"{type(module).__name__} has weights of another kind"
    if not found:
        skipped[""] = f"{type(model).__name__} has no weight layer, such as nn.Linear or a convolution, that runs"
    return found, skipped


def unfit(module: nn.Module) -> str | None:
    """The reason why a remedy can do nothing to a weight layer; None where it can."""
    if weight_layout(module) is None:
        return f"{type(module).__name__} has weights of another kind"
    weight: Tensor | None = module._parameters.get("weight")
    if weight is not None and weight.dtype not in _TRAINED:
        return f"its weights are {weight.dtype}"
    if weight is not None and weight.numel() == 0:
        return f"its weight of shape {tuple(weight.shape)} is empty"
    return None


def check_not_quantized(path: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError for a layer whose weights are integers, or packed."""
    weight: Tensor | None = module._parameters.get("weight")
    weight = module._buffers.get("weight") if weight is None else weight
    packed = ".quantized" in type(module).__module__ or (
        weight is not None and weight.dim() >= 2 and not (weight.is_floating_point() or weight.is_complex())
    )
    if packed:
        raise UnsupportedModelError(
            path,
            f"{type(module).__name__} is quantized and has no weights to train; apply this before quantizing",
            code="quantized",
        )


def check_free(path: str, module: nn.Module, name: str) -> None:
    """Raise UnsupportedModelError where a module has something of a name already."""
    if hasattr(module, name):
        raise UnsupportedModelError(path, f"it has {name!r} already; undo that first", code="name-taken")
