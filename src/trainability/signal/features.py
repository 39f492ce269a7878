"""The dimensions of a recorded value that are its features, and what an operation does to them.

The theory takes averages over features, so an operation over them (a mean over channels) is another network, while one
over places (pooling) merely averages.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from trainability.signal.operations import name_of, out_of_place

Dims = frozenset[int]

_SHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "_unsafe_view"}
_EXPANSIONS = {"expand", "expand_as", "broadcast_to"}
_PERMUTATIONS = {"permute", "movedim", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "mH", "adjoint"}
_CONVOLUTIONS = ("conv", "convolution")


def shape_of(node: object) -> tuple[int, ...]:
    """Shape of what a recorded operation gives; empty where it gives no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, list | tuple) and value:  # the first of several
        value = value[0]
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def of_input(shape: Sequence[int]) -> Dims:
    """Features of an input: dimension 1 of vectors and maps, the last of sequences."""
    return frozenset({1 if len(shape) in (2, 4, 5) else len(shape) - 1}) if len(shape) > 1 else frozenset()


def of_product(node: fx.Node, left: bool) -> Dims:
    """Features of what a weight layer gives."""
    dims, name = len(shape_of(node)), name_of(node)
    if name.startswith(_CONVOLUTIONS):
        kernel = len(shape_of(node.args[1])) - 2
        return frozenset({dims - kernel - 1})
    return frozenset({dims - 2 if left and dims > 1 else dims - 1})


def covered(node: fx.Node) -> float:
    """Share of the taps of a convolution that meet the map, the others meeting the zeros around it; 1 elsewhere."""
    source, weight = shape_of(node.args[0]) if node.args else (), shape_of(node.args[1]) if len(node.args) > 1 else ()
    if name_of(node) not in ("conv1d", "conv2d", "conv3d") or len(weight) < 3:
        return 1.0
    given = [(*node.args[3:], *[None] * 4)[i] for i in range(3)]  # stride, padding, dilation
    dims = len(weight) - 2
    share = 1.0
    for d in range(dims):
        size, kernel = source[len(source) - dims + d], weight[2 + d]
        stride, padding, dilation = (
            (_listed(value) * dims)[d] if _listed(value) else default
            for value, default in zip(given, (1, 0, 1), strict=True)
        )
        if given[1] == "same":
            padding = dilation * (kernel - 1) // 2
        count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        places = [o * stride - padding + t * dilation for o in range(count) for t in range(kernel)]
        share *= sum(0 <= place < size for place in places) / max(len(places), 1)
    return share


def after(node: fx.Node, features: Dims) -> Dims:
    """Features of what an operation gives, from those of its first argument."""
    source, name = shape_of(node.args[0]), name_of(node)
    result = shape_of(node)
    if name in _SHAPES:
        return _regrouped(source, result, features)
    if name in _EXPANSIONS:
        return frozenset(d + len(result) - len(source) for d in features)
    order = list(range(len(source)))
    if name in _PERMUTATIONS:  # torch says itself what it does to dimensions that are known by their sizes
        order = [*out_of_place(node)(torch.empty(order, device="meta"), *node.args[1:]).shape]
    elif len(result) < len(source):  # dimensions were taken out: by a choice, or by a mean
        gone = {d % len(source) for d in reduced(node)}
        order = [d for d in order if d not in gone]
    return frozenset(i for i, d in enumerate(order) if d in features)


def reduced(node: fx.Node) -> list[int]:
    """Dimensions that an operation takes a mean, a maximum, a part or nothing of; all where none is given."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return _listed(given) or list(range(len(shape_of(node.args[0]))))


def _listed(value: object) -> list[int]:
    return [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int)]


def _regrouped(source: tuple[int, ...], result: tuple[int, ...], features: Dims) -> Dims:
    """Features after dimensions were joined and split; runs of dimensions of one size in all belong together."""
    found: set[int] = set()
    i = j = 0
    while i < len(source) or j < len(result):
        left, right = [i], [j]
        a = source[i] if i < len(source) else 1
        b = result[j] if j < len(result) else 1
        i, j = i + 1, j + 1
        while a != b and (i < len(source) or j < len(result)):
            if (a < b or j >= len(result)) and i < len(source):
                a, i = a * source[i], i + 1
                left.append(i - 1)
            else:
                b, j = b * result[j], j + 1
                right.append(j - 1)
        if features & set(left):
            sized = [d for d in right if d < len(result) and result[d] > 1] or [d for d in right if d < len(result)]
            found.update(sized)
    return frozenset(found)
