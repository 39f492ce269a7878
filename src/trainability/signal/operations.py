"""ATen operations by what they do to a kernel, and what a recorded call of one says."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from trainability.introspect.activation_table import OPERATIONS
from trainability.introspect.torch_private import operation_name

AFFINE = {
    *("linear", "conv1d", "conv2d", "conv3d", "convolution", "addmm", "mm", "matmul", "baddbmm"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
# What gives the same values in another shape, in memory that it shares with what it takes.
_RESHAPING = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "numpy_T", "mT", "mH", "adjoint"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "slice", "select", "narrow", "split", "split_with_sizes", "chunk"),
    *("movedim", "view_as", "swapaxes", "swapdims", "broadcast_to", "unbind"),
}
VIEWS = _RESHAPING | {"alias", "contiguous", "detach", "getitem", "to"}
PASSING = _RESHAPING | {
    *("dropout", "feature_dropout", "alpha_dropout", "native_dropout", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "max_pool2d_with_indices", "mean", "_unsafe_view", "roll", "flip"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest2d", "upsample_bilinear2d", "pad"),
    *("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "unfold", "im2col", "index_select"),
}
# What gives the same numbers in another type, or in another place of memory.
CASTS = {"to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy"}
# What takes places together: the mean square that comes out depends on how alike they are.
POOLING = {
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "upsample_bilinear2d", "pad"),
    *("constant_pad_nd", "fixed matrix"),
}
# Of one value the places that are largest or smallest, and which these are.
CHOOSING = {"max", "min", "amax", "amin", "median", "kthvalue", "topk", "sort", "cummax", "cummin", "mode"}
# What takes the largest of several values, which are not normal any more, nor of mean 0.
MAXIMA = CHOOSING | {"max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"}
MAXIMA |= {"adaptive_max_pool1d", "adaptive_max_pool2d"}
LINEAR = {"add", "sub", "rsub", "mul", "div", "neg"}
ELEMENTWISE = OPERATIONS | {
    *("abs", "exp", "log", "expm1", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "pow", "cos"),
    *("arctan", "arcsinh", "clamp", "clamp_min", "clamp_max", "clip", "sinh", "cosh", "special_erf", "logit", "sgn"),
    *("sign", "heaviside", "gt", "lt", "ge", "le", "where", "maximum", "minimum", "max", "min", "logaddexp"),
}
# What these give depends on the shape of a signal and not on its values.
SHAPED_LIKE = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}
ATTENTION = {"scaled_dot_product_attention", "softmax", "_softmax", "log_softmax", "bmm", "einsum"}


def output_count(name: str, weight: Tensor, node: fx.Node, left: bool) -> float:
    """The number of outputs that share the squares of a weight: rows; for a transposed convolution times the stride."""
    if name.startswith("conv_transpose"):
        strides = node.args[3] if len(node.args) > 3 else (1,)
        assert isinstance(strides, list | tuple)
        groups = node.args[6] if len(node.args) > 6 else 1
        assert isinstance(groups, int)
        return weight.shape[1] * groups * math.prod(s for s in strides if isinstance(s, int))
    if name in ("addmm", "mm", "matmul", "baddbmm"):
        return weight.shape[-2 if left else -1]
    return weight.shape[0]


def mean_square(tensor: Tensor) -> float:
    """NaN for a tensor that has a shape alone: the graph can be read all the same."""
    return math.nan if tensor.is_meta else float(tensor.detach().double().square().mean())


def mean_of(tensor: Tensor) -> float:
    """The mean of its values; NaN for a tensor that has a shape alone."""
    return math.nan if tensor.is_meta else float(tensor.detach().double().mean())


def name_of(node: fx.Node) -> str:
    """Name of the operation, or of the one that it does in place."""
    name = operation_name(node)
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def out_of_place(node: fx.Node) -> Callable[..., Any]:
    """The operation, or the one that it does in place."""
    assert callable(node.target)
    if name_of(node) == operation_name(node):
        return node.target
    function: Callable[..., Any] = getattr(torch.ops.aten, name_of(node))
    return function


def leaves(value: Any) -> list[Any]:
    """Everything in nested lists, tuples and dictionaries."""
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [value]


def zeros_like_value(value: Any) -> Any:
    """Zeros of the shape that a recorded value has; what is not recorded, as it is."""
    if not isinstance(value, fx.Node):
        return value
    like = value.meta["val"]
    return torch.zeros([int(size) for size in like.shape], dtype=like.dtype, device="cpu")


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every leaf of nested lists, tuples and dictionaries."""
    if isinstance(value, list | tuple):
        return type(value)(map_leaves(function, item) for item in value)
    if isinstance(value, dict):
        return {key: map_leaves(function, item) for key, item in value.items()}
    return function(value)


def common_module(paths: list[str]) -> str:
    """The innermost module that contains all of these."""
    parts = [path.split(".") if path else [] for path in paths]
    shared = []
    for names_ in zip(*parts, strict=False):
        if len(set(names_)) > 1:
            break
        shared.append(names_[0])
    return ".".join(shared)
