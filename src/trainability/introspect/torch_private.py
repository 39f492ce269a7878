"""All that the package uses of torch without torch having documented it, in one place for when torch changes.

Not here are the dictionaries ``_parameters``, ``_buffers`` and ``_modules`` of a module, which say what it holds itself
and have been there since the first torch, nor ``_apply`` and ``_load_from_state_dict``, which are overridden.
"""

import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace, graph
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

ConvNd = nn.modules.conv._ConvNd
ConvTransposeNd = nn.modules.conv._ConvTransposeNd
BatchNormNd = nn.modules.batchnorm._BatchNorm
RunningNorm = nn.modules.batchnorm._NormBase  # every kind of BatchNorm and InstanceNorm
DropoutNd = nn.modules.dropout._DropoutNd

tree_leaves, tree_map, tree_unflatten = _pytree.tree_leaves, _pytree.tree_map, _pytree.tree_unflatten
treespec_dumps, treespec_loads = _pytree.treespec_dumps, _pytree.treespec_loads
PH, CodeGen = _symbolic_trace.PH, graph.CodeGen
MADE_BY_TRACING = "_tensor_constant"  # with which the names begin of attributes that symbolic tracing sets

foreach_sub, foreach_mul_, foreach_add_ = torch._foreach_sub, torch._foreach_mul_, torch._foreach_add_
# Asked at every reading or step, so the cheap way. Where torch has one no longer, the answer is the careful one.
current_graph_task = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # -1 outside of backward passes
saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
is_wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda _: False)

_HOOKS = [f"_forward_{kind}" for kind in ("pre_hooks", "pre_hooks_with_kwargs", "hooks", "hooks_with_kwargs")]
_HOOKS += ["_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"]


def version_of(tensor: Tensor) -> int:
    """The number of changes in place of a tensor, which one that was made in inference mode does not count."""
    return tensor._version


def set_version(tensor: Tensor, version: int) -> None:
    """Set the number of changes in place, by which a backward pass knows whether it has what it saved."""
    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def storage_number(tensor: Tensor) -> int | None:
    """The number by which the memory of a tensor is known; None for one that has none of its own, as a sparse one."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that run before and after the forward of a module."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def forward_hooks(module: nn.Module) -> Any:
    """The ordered dictionary of the hooks that run after the forward of a module."""
    return module._forward_hooks


def swap_hooks(a: nn.Module, b: nn.Module) -> None:
    """Give two modules the hooks of one another.

    The dictionaries themselves change places: handles know them, and undoing gives a module back those that it had.
    """
    for name in _HOOKS:
        vars(a)[name], vars(b)[name] = vars(b)[name], vars(a)[name]


def check_norm_input(norm: BatchNormNd, x: Tensor) -> None:
    """Raise ValueError for an input whose number of dimensions a BatchNorm does not take."""
    norm._check_input_dim(x)


def uncompiled(model: nn.Module) -> nn.Module | None:
    """The module inside what `torch.compile` returned; None for any other."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def compiler_is_loaded() -> bool:
    """True once the compiler of torch, which takes seconds to load, is loaded."""
    return "torch._dynamo" in sys.modules


def schema_of(operation: Any) -> Any:
    """The signature of an ATen operation, which says what it writes to; None for operations of higher order."""
    return getattr(operation, "_schema", None)


def operation_name(node: fx.Node) -> str:
    """The name of the operation that a recorded node calls, such as ``add_``."""
    return str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))


def packing_of(graph: fx.Graph) -> Any:
    """The structures by which a traced graph packs and unpacks its tensors; None where it does not."""
    return getattr(graph._codegen, "pytree_info", None)


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that sees every operation without loading the compiler."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or every pass would load the compiler, which takes seconds


class DispatchModeBesideCompiler(DispatchMode):
    """The same where the compiler is loaded, which would otherwise compile what the mode does."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True
