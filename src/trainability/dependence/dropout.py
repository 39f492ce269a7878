"""The effect of dropout on the dependence of two neurons, measured and expected."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trainability.dependence.pairs import mutual_information
from trainability.errors import ArgumentError, check_keep, check_list, check_number, check_real_tensor, check_whole


@dataclass(frozen=True)
class DropoutEffect:
    """Correlation and information after dropout, divided by those before, with the standard error over the repeats.

    ``information`` takes the masks for known, as a zero shows them: the estimate for the pairs of which both are
    kept, times their share, and what the zeros of one tell of those of the other. ``mixture`` knows nothing of masks
    (`mutual_information` of all samples), and is off by some hundredths of a nat.
    """

    keep: float
    mean: float
    correlation: float
    correlation_error: float
    expected_correlation: float
    information: float
    information_error: float
    mixture: float
    mixture_error: float
    expected_information: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)


def correlation_after_dropout(correlation: float, keep: float, mean: float = 0.0) -> float:
    """Correlation of two neurons of variance 1 and one mean after dropout that keeps entries with probability ``keep``.

    keep · ρ / (1 + (1 - keep) · mean²): dropout multiplies the covariance by keep², and a variance by keep, to which
    the mean adds keep (1 - keep) mean². For a mean of zero the factor is ``keep``.

    Reference: Chen et al. (2019), theorem 1, whose neurons have mean zero.

    >>> round(correlation_after_dropout(1.0, keep=0.5), 3), round(correlation_after_dropout(1.0, keep=0.5, mean=1.0), 3)
    (0.5, 0.333)
    """
    check_keep(keep)
    check_number("correlation", correlation)
    check_number("mean", mean)
    return keep * correlation / (1 + (1 - keep) * mean**2)


def information_after_dropout(information: float, keep: float) -> float:
    """Mutual information of two neurons after independent dropout: keep² times what it was.

    Where both are continuous a zero shows a dropped entry, so only the keep² pairs that are kept tell anything. This
    holds for every mean.

    Reference: Chen et al. (2019), theorem 1.

    >>> round(information_after_dropout(2.0, keep=0.95), 3)
    1.805
    """
    check_keep(keep)
    check_number("information", information)
    return keep**2 * information


def dropout_effects(
    x: Tensor,
    y: Tensor,
    *,
    keeps: Sequence[float] = (0.5, 0.8, 0.95),
    means: Sequence[float] = (0.0, 1.0),
    repeats: int = 16,
    seed: int = 0,
) -> list[DropoutEffect]:
    """Draw dropout masks for two neurons many times, and compare what becomes of their dependence with the theorem.

    The neurons are standardized, and the mean is added.

    Args:
        x: samples ``(S,)`` of a neuron without an atom, such as BatchNorm gives.
        y: the same of another one.
        keeps: probabilities of keeping an entry.
        means: of both neurons.
        repeats: how often masks are drawn.
        seed: of the masks.

    Returns:
        One for each mean and probability.

    Raises:
        TypeError: ``x`` or ``y`` is no tensor of real numbers.
        ValueError: they differ in shape, do not vary, or are not finite; a probability outside (0, 1].

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(1000)
    >>> effect = dropout_effects(x, x + torch.randn(1000), keeps=[0.8], means=[0.0])[0]
    >>> abs(effect.correlation - 0.8) < 4 * effect.correlation_error
    True
    >>> abs(effect.information - 0.64) < 4 * effect.information_error
    True
    """
    check_whole("repeats", repeats, least=2)
    check_whole("seed", seed, least=0)
    check_list("keeps", keeps)
    check_list("means", means)
    for keep in keeps:
        check_keep(keep)
    for mean in means:
        check_number("mean", mean)
    for name, v in (("x", x), ("y", y)):
        check_real_tensor(name, v)
        if v.dim() != 1 or v.shape != x.shape or len(v) < 2:
            raise ArgumentError(
                f"x and y must both be (S,), not {tuple(x.shape)} and {tuple(v.shape)}", code="shapes-differ"
            )
        if not bool(v.isfinite().all()) or bool((v == v[0]).all()):
            raise ArgumentError(f"{name} must be finite and not constant", code="no-spread")
    x, y = (v.detach().cpu().double() for v in (x, y))  # where the masks are drawn
    x, y = ((v - v.mean()) / v.std(correction=0) for v in (x, y))
    before, information = float((x * y).mean()), float(mutual_information(x, y))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for mean in means:
        for keep in keeps:
            ratios = torch.tensor(
                [_once(x + mean, y + mean, keep, generator) for _ in range(repeats)], dtype=torch.float64
            )
            ratios /= torch.tensor([before, information, information])
            errors = ratios.std(0) / math.sqrt(repeats)
            found.append(
                DropoutEffect(
                    keep,
                    mean,
                    float(ratios[:, 0].mean()),
                    float(errors[0]),
                    correlation_after_dropout(1.0, keep, mean),
                    float(ratios[:, 1].mean()),
                    float(errors[1]),
                    float(ratios[:, 2].mean()),
                    float(errors[2]),
                    information_after_dropout(1.0, keep),
                )
            )
    return found


def _once(x: Tensor, y: Tensor, keep: float, generator: torch.Generator) -> tuple[float, float, float]:
    """Correlation and both estimates of the information of two neurons after masks that are drawn once."""
    one, other = (torch.rand(x.shape, generator=generator, dtype=torch.float64) < keep for _ in range(2))
    first, second = x * one, y * other
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    both = one & other
    known = float(mutual_information(x[both], y[both])) * float(both.double().mean()) + _of_zeros(one, other)
    return correlation, known, float(mutual_information(first, second))


def _of_zeros(one: Tensor, other: Tensor) -> float:
    """Mutual information of two masks, from how often each pair of states comes."""
    joint = torch.stack([(a & b).double().mean() for a in (one, ~one) for b in (other, ~other)]).view(2, 2)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.xlogy(joint, joint / apart).sum())
