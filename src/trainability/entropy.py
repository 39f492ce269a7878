"""Batch entropy: how much information a layer passes on, in nats per neuron."""

import math
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from trainability.errors import ArgumentError, ArgumentTypeError, check_choice, check_whole
from trainability.moments import Neurons, careful_moments, sample_count, sample_rows, samples

Convention = Literal["paper", "published-code"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONSTANTS = {"paper": 2 * math.pi * math.e, "published-code": math.pi * math.e}


def entropy_constant(convention: Convention) -> float:
    """The constant c of ``log(c σ² + 1)``: 2πe in the paper, πe in the code published with it."""
    check_choice("convention", convention, get_args(Convention))
    return _CONSTANTS[convention]


def batch_entropy(
    a: Tensor,
    *,
    convention: Convention = "paper",
    neurons: Neurons = "position",
    channel_dim: int | None = None,
) -> Tensor:
    """Entropy of a layer over a mini-batch, averaged over its neurons.

    H = (1/n) Σ_k ½ log(c σ_k² + 1), where σ_k² is the unbiased variance of neuron k over the batch and
    c = 2πe (``convention="paper"``) or πe (``"published-code"``, which the tables of the paper were made with).

    Args:
        a: activation ``(B, ...)``, floating point, at least two samples per neuron.
        convention: which constant.
        neurons: ``"position"``: every entry of ``a[0]`` is a neuron, as in the paper. ``"channel"``: a channel
            is a neuron and its positions are further samples.
        channel_dim: the channel's dimension where it is not 1 (4 or 5 dimensions) or last (otherwise).

    Returns:
        A scalar in nats: float32 for half types, the dtype of ``a`` otherwise. 0 means that the layer says
        the same about every input. Differentiable once.

    Raises:
        TypeError: ``a`` is not a floating-point tensor.
        ValueError: fewer than two samples per neuron, no neurons, or an unknown ``convention`` or ``neurons``.

    Reference: Peer et al. (2022), eq. 2 and 3.

    >>> import torch
    >>> batch_entropy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # σ² is 2 for one neuron and 0 for the other
    tensor(0.8900)
    """
    return _gaussian(a, convention, neurons, channel_dim).mean()


def neuron_entropy(
    a: Tensor,
    *,
    convention: Convention = "paper",
    neurons: Neurons = "position",
    channel_dim: int | None = None,
) -> Tensor:
    """Entropy of every neuron over a mini-batch: H_k = ½ log(c σ_k² + 1), in nats.

    Arguments and errors are those of `batch_entropy`. The result has the shape of ``a[0]`` for
    ``neurons="position"`` and ``(channels,)`` for ``"channel"``.

    Reference: Peer et al. (2022), eq. 2.

    >>> import torch
    >>> neuron_entropy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    tensor([1.7799, 0.0000])
    """
    check_activation(a)
    if neurons == "position":
        a = a.contiguous()  # so that the neurons come in the order of their positions
    entropy = _gaussian(a, convention, neurons, channel_dim)
    return entropy.reshape(a.shape[1:]) if neurons == "position" else entropy


def differential_entropy(
    a: Tensor,
    *,
    method: Literal["gaussian", "knn"] = "knn",
    k: int = 3,
    neurons: Neurons = "position",
    channel_dim: int | None = None,
) -> Tensor:
    """Differential entropy of every neuron, to see how Gaussian the neurons are.

    ``"gaussian"`` is ½ log(2πe σ²), the most that any distribution of variance σ² can have. ``"knn"`` is the
    nearest-neighbor estimate ψ(S) − ψ(k) + log 2 + (1/S) Σ_s log ε_s, with ε_s the distance from sample s to its
    k-th nearest neighbor among S. What "gaussian" exceeds "knn" by is how far from Gaussian the neuron is.

    Neither has the ``+ 1`` of the batch entropy. A neuron with an atom, such as the exact zeros of a ReLU, has the
    differential entropy −inf; ``"knn"`` shows it, ``"gaussian"`` sees only the variance. There is no
    gradient through ``"knn"``.

    Args:
        a: activation ``(B, ...)`` with more than ``k`` samples per neuron.
        method: which estimate.
        k: which neighbor; more lowers the variance and raises the bias.
        neurons: as in `batch_entropy`.
        channel_dim: as in `batch_entropy`.

    Returns:
        ``(n,)`` in nats, one per neuron.

    Raises:
        TypeError: ``a`` is not a floating-point tensor.
        ValueError: an unknown ``method``, or not more than ``k`` samples.

    Reference: Kozachenko and Leonenko (1987); Kraskov, Stögbauer and Grassberger (2004), eq. 20.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(4000, 1)  # uniform on [0, 1]: its entropy is 0, that of a Gaussian of its variance 0.176
    >>> [round(differential_entropy(x, method=method).item(), 1) for method in ("gaussian", "knn")]
    [0.2, 0.0]
    """
    check_choice("method", method, ("gaussian", "knn"))
    check_whole("k", k)
    check_activation(a)
    x = sample_rows(samples(a, neurons, channel_dim))
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = x.shape[0]
    if method == "gaussian":
        _check_count(a, count)
        return x.std(0).log() + 0.5 * math.log(2 * math.pi * math.e)
    check_neighbor(k, count)
    ordered = x.detach().sort(dim=0).values
    # In one dimension the k-th neighbor is one end of a window of k + 1 ordered samples that holds the sample.
    distance = torch.full_like(ordered, math.inf)
    for left in range(k + 1):
        low = ordered[: count - k]
        high = ordered[k:]
        middle = ordered[left : count - k + left]
        reach = torch.maximum(middle - low, high - middle)
        distance[left : count - k + left] = torch.minimum(distance[left : count - k + left], reach)
    digamma = torch.special.digamma(torch.tensor([float(count), float(k)], dtype=torch.float64))
    bias = float(digamma[0] - digamma[1]) + math.log(2)
    return distance.log().mean(0).add(bias)


def entropy_from_variance(variance: Tensor, count: int, constant: float) -> Tensor:
    """½ log(c σ² + 1), with σ² the unbiased form of a biased ``variance`` over ``count`` samples."""
    return torch.log1p(variance * (constant * count / (count - 1))) * 0.5


def check_neighbor(k: int, count: int) -> None:
    """Raise an error for a neighbor that so many samples do not have."""
    check_whole("k", k)
    if k >= count:
        raise ArgumentError(f"k is {k}, and must be less than the {count} samples of a neuron", code="too-few-samples")


def is_activation(a: object) -> TypeGuard[Tensor]:
    """True where the entropy of ``a`` is defined: for a dense floating-point tensor with neurons in it."""
    return _is_dense_float(a) and a.dim() > 0 and a.numel() > 0


def _is_dense_float(a: object) -> TypeGuard[Tensor]:
    return isinstance(a, Tensor) and a.dtype in _FLOATS and a.layout == torch.strided and not a.is_nested


def _gaussian(a: Tensor, convention: Convention, neurons: Neurons, channel_dim: int | None) -> Tensor:
    constant = entropy_constant(convention)
    check_activation(a)
    x = samples(a, neurons, channel_dim)
    count = sample_count(x)
    _check_count(a, count)
    _, variance = careful_moments(x)
    entropy = entropy_from_variance(variance, count, constant)
    return entropy if x.dtype == torch.float64 else entropy.float()


def _check_count(a: Tensor, count: int) -> None:
    if count < 2:
        raise ArgumentError(
            f"an activation of shape {tuple(a.shape)} has one sample per neuron; a variance over a batch needs two",
            code="one-sample",
        )


def check_activation(a: object) -> None:
    """Raise an error for what `is_activation` is not true of."""
    if not isinstance(a, Tensor):
        raise ArgumentTypeError(f"an activation must be a tensor, not {type(a).__name__}", code="wrong-type")
    if not _is_dense_float(a):
        kind = "a nested tensor" if a.is_nested else f"one of {a.dtype}"
        kind += "" if a.is_nested or a.layout == torch.strided else f" and {a.layout}"
        raise ArgumentTypeError(
            f"an activation must be a dense tensor of float16, bfloat16, float32 or float64, not {kind}; "
            "convert it with .float() or .to_dense()",
            code="wrong-type",
        )
    if not is_activation(a):
        raise ArgumentError(f"an activation of shape {tuple(a.shape)} has no samples or no neurons", code="empty")
