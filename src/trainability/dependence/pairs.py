"""The dependence of the neurons of a layer on one another: correlation and mutual information of pairs."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainability.entropy import check_activation, check_neighbor
from trainability.errors import ArgumentError, check_choice, check_real_tensor, check_whole
from trainability.moments import Neurons, sample_rows, samples


@dataclass(frozen=True)
class Independence:
    """Dependence of pairs of neurons; all means over the pairs, information in nats.

    ``correlation`` is the mean of |ρ|, which is about 0.8 / √samples for independent neurons. ``gaussian`` is the
    mutual information that a Gaussian pair of that ρ has, −½ log(1 − ρ²), and ``knn`` the nearest-neighbor estimate,
    which sees every kind of dependence and scatters by about 1 / √samples; after dropout it is off by some
    hundredths of a nat (0.03 with 256 samples). ``pairs`` is how many pairs were looked at for ``knn``; for the others
    it is all pairs of the neurons that were taken. Neurons that do not vary are left out.
    """

    correlation: float
    gaussian: float
    knn: float
    pairs: int
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)


def independence(
    a: Tensor,
    *,
    neurons: Neurons = "position",
    channel_dim: int | None = None,
    most_neurons: int = 64,
    most_pairs: int = 16,
    most_samples: int = 512,
    k: int = 3,
) -> Independence | None:
    """The dependence of the neurons of an activation on one another, over a batch.

    Args:
        a: activation ``(B, ...)``, floating point.
        neurons: as in `trainability.batch_entropy`; with ``"channel"`` the positions are further samples.
        channel_dim: as in `trainability.batch_entropy`.
        most_neurons: how many neurons are taken, evenly spaced over the layer.
        most_pairs: for how many pairs of these the nearest-neighbor estimate is made.
        most_samples: how many samples of each, evenly spaced.
        k: which neighbor.

    Returns:
        None where fewer than two neurons vary.

    Raises:
        TypeError: ``a`` is not a floating-point tensor.
        ValueError: not more samples than ``k``.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(500, 1) + torch.randn(500, 8)  # every pair has a correlation of 1/2
    >>> found = independence(x)
    >>> round(found.correlation, 1), round(found.gaussian, 2), found.pairs
    (0.5, 0.14, 16)
    """
    check_whole("most_pairs", most_pairs)
    check_whole("k", k)
    x = varying_neurons(a, neurons, channel_dim, most_samples, most_neurons)
    check_neighbor(k, len(x))
    if x.shape[1] < 2:
        return None
    rho = torch.corrcoef(x.T).clamp(-1, 1)
    first, second = torch.triu_indices(len(rho), len(rho), offset=1)
    each = rho[first, second]
    chosen = evenly_spaced(len(each), most_pairs)
    information = mutual_information(x[:, first[chosen]], x[:, second[chosen]], k=k)
    return Independence(
        float(each.abs().mean()),
        float(_of_correlation(each).mean()),
        float(information.mean()),
        len(chosen),
        len(x),
    )


def mutual_information(x: Tensor, y: Tensor, *, method: Literal["knn", "gaussian"] = "knn", k: int = 3) -> Tensor:
    """Mutual information of pairs of variables, in nats.

    ``"gaussian"`` is −½ log(1 − ρ²), exact for a Gaussian pair. ``"knn"`` is the nearest-neighbor estimate for
    mixtures of discrete and continuous parts,

        log S + (1/S) Σ_s [ψ(n_s) − ψ(n_x,s) − ψ(n_y,s)],

    with r_s the distance (the larger of that in x and that in y) from sample s to its k-th nearest neighbor, and n_s,
    n_x,s and n_y,s how many samples, itself included, are nearer to it than r_s, in both, in x and in y. So n_s is k,
    unless several samples lie at the distance r_s; where r_s is 0 all three count the samples that coincide. It is
    right for neurons with an atom, such as the zeros of a dropout or a ReLU, where the Gaussian formula is not. It may
    come out slightly below 0.

    Args:
        x: samples ``(S,)`` or ``(S, P)`` of P variables.
        y: the same number of samples, of the variables to pair them with.
        method: which estimate.
        k: which neighbor; more lowers the variance and raises the bias.

    Returns:
        ``(P,)``, or a scalar where ``x`` is ``(S,)``, in float64.

    Raises:
        ValueError: ``x`` and ``y`` differ in shape, an unknown ``method``, or not more samples than ``k``.

    Reference: Kraskov, Stögbauer and Grassberger (2004), eq. 8; Gao, Kannan, Oh and Viswanath (2017), algorithm 1,
    which takes k for n_s where several samples lie at one distance, too, and is then too high.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(2000)
    >>> y = 0.9 * x + math.sqrt(1 - 0.81) * torch.randn(2000)
    >>> abs(mutual_information(x, y) + 0.5 * math.log(1 - 0.81)) < 0.1
    tensor(True)
    """
    check_choice("method", method, ("knn", "gaussian"))
    for name, variable in (("x", x), ("y", y)):
        check_real_tensor(name, variable)
    if x.shape != y.shape or x.dim() not in (1, 2) or x.numel() == 0:
        raise ArgumentError(
            f"x and y must both be (S,) or (S, P), and hold something, not {tuple(x.shape)} and {tuple(y.shape)}",
            code="shapes-differ",
        )
    check_neighbor(k, len(x))
    if x.dim() == 1:
        return mutual_information(x.unsqueeze(1), y.unsqueeze(1), method=method, k=k)[0]
    x, y = x.detach().double(), y.detach().double()
    if method == "gaussian":
        return _of_correlation(_correlation(x, y))
    return torch.stack([_mixed(one, other, k) for one, other in zip(x.unbind(1), y.unbind(1), strict=True)])


def varying_neurons(
    a: Tensor, neurons: Neurons, channel_dim: int | None = None, most_samples: int = 512, most_neurons: int = 64
) -> Tensor:
    """Samples ``(S, n)`` in float64 of neurons that vary, evenly spaced and at most so many of either."""
    check_whole("most_samples", most_samples)
    check_whole("most_neurons", most_neurons)
    check_activation(a)
    check_real_tensor("an activation", a)
    x = sample_rows(samples(a.detach(), neurons, channel_dim))
    x = x[evenly_spaced(len(x), most_samples)].double()
    x = x[:, (x != x[:1]).any(0)]
    return x[:, evenly_spaced(x.shape[1], most_neurons)]


def evenly_spaced(count: int, most: int) -> Tensor:
    """So many indices at the most, evenly spaced."""
    if count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most, dtype=torch.float64).round().long()


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt()).clamp(-1, 1)


def _of_correlation(rho: Tensor) -> Tensor:
    """Information of a Gaussian pair; of one that is fully correlated as much as double precision can tell."""
    return -0.5 * torch.log((1 - rho.square()).clamp(min=1e-15))


def _mixed(x: Tensor, y: Tensor, k: int) -> Tensor:
    """The estimate for mixtures, of one pair of variables."""
    x, y = (v / s if (s := v.std()) > 0 else v for v in (x, y))  # information does not depend on the units
    apart_x, apart_y = (x - x.unsqueeze(1)).abs(), (y - y.unsqueeze(1)).abs()
    apart = torch.maximum(apart_x, apart_y)
    reach = apart.topk(k + 1, largest=False).values[:, -1:]  # the nearest is the sample itself
    reach = torch.where(reach == 0, torch.finfo(reach.dtype).tiny, reach)
    # The sample itself is always nearer. Several others may lie at the reach, as the zeros of a dropout do for a sample
    # beside them; then it is a nearer neighbor than the k-th whose distance it is.
    near = torch.stack([(distance < reach).sum(1) for distance in (apart, apart_x, apart_y)])
    both, in_x, in_y = torch.digamma(near.double())
    information: Tensor = (both - in_x - in_y).mean() + math.log(len(x))
    return information
