"""Layerwise batch-entropy regularisation (LBE): a loss term that keeps information flowing through every layer."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from trainability.entropy import Convention, entropy_constant, is_activation
from trainability.errors import UnsupportedModelError
from trainability.layers import Selection, Where, select
from trainability.moments import GroupMoments, Moments, Neurons, sample_count, samples
from trainability.observe import unwrap
from trainability.taps import Taps, reading_name

# Below the first size a call costs more than its arithmetic, so activations are gathered up to the second.
_SMALL = 2**15
_GROUP = 2**17

# Both are asked on every step, so the cheap way; where torch has them no longer, the answer is the safe one.
_saving_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
_in_backward = getattr(torch._C, "_current_graph_task_id", lambda: -1)


@dataclass(frozen=True)
class Last:
    """What the last ``lbe(loss)`` saw. Reading a value waits for the device; nothing before that does."""

    _names: tuple[str, ...]
    _rows: tuple[int, ...]
    _loss: Tensor
    _lbe: Tensor
    _entropy: Tensor
    _alpha: Tensor
    _alpha_min: float

    @property
    def ce(self) -> float:
        """The loss that was passed in."""
        return float(self._loss)

    @property
    def lbe(self) -> float:
        """L_BE of eq. 5, the relative weight of the term: the total was ce (1 + lbe)."""
        return float(self._lbe)

    @property
    def entropy(self) -> dict[str, float]:
        """Batch entropy per reading, in nats; over all ranks where there are several."""
        return dict(zip(self._names, self._entropy.tolist(), strict=True))

    @property
    def alpha(self) -> dict[str, float]:
        """The learned alpha per reading; calls of one layer share theirs."""
        values = self._alpha.tolist()
        return {name: values[row] for name, row in zip(self._names, self._rows, strict=True)}

    @property
    def inert(self) -> tuple[str, ...]:
        """Readings whose |alpha| is below ``alpha_min``: the target is fixed there and alpha does not learn."""
        return tuple(name for name, value in self.alpha.items() if abs(value) < self._alpha_min)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Readings whose entropy is NaN or infinite, in the order in which they ran."""
        return tuple(name for name, value in self.entropy.items() if not value < float("inf"))


class LBE(nn.Module):
    """Layerwise batch-entropy regularisation of a model, in one line of any training loop.

    With H^l the batch entropy of layer l over the mini-batch,

        L^l   = (H^l − max(alpha_min, |alpha^l|))²                      (eq. 4)
        L_BE  = (beta / L) Σ_l L^l                                      (eq. 5)
        total = loss · (1 + L_BE)                                       (eq. 6), with the loss not detached

    and, where a loss is negative, loss + |loss| · L_BE with |loss| detached, so that leaving alpha is never rewarded.
    The model is not changed; hooks read its activations. In ``eval()``, of this module or of the model, the loss
    is returned as it is.

    Over several ranks (DistributedDataParallel, FSDP) the statistics are those of the global batch, by one
    all-reduce of fixed shape per call, and the gradients are right for ranks that are averaged.

    Args:
        model: the model; it may be wrapped in `torch.compile` or DistributedDataParallel.
        alpha: initial target of every layer, in nats; learned, one per layer.
        beta: strength.
        alpha_min: floor of the targets. An alpha below it is inert.
        where: which layers (`trainability.select`); the default is every hidden nonlinearity.
        inputs: an example batch that lets the default find activations called as functions for certain.
        convention: ``"paper"`` (2πe) or ``"published-code"`` (πe; the tables of the paper).
        neurons: what counts as a neuron (`trainability.batch_entropy`).
        channel_dim: as in `trainability.batch_entropy`.

    Attributes:
        alpha: the learnable targets ``(L,)``, in the order of ``selection.paths``.
        selection: which layers, and the account of it.
        last: what the last call saw.

    Raises:
        ValueError: ``beta`` or ``alpha_min`` negative, or ``where`` matches nothing. A call raises it for a loss that
            is not a scalar, and for a layer with one sample per neuron.
        RuntimeError: a call without a forward pass before it.

    Reference: Peer et al. (2022), eq. 3 to 6.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> lbe = LBE(model, alpha=0.5, beta=0.2)
    >>> ce = nn.functional.cross_entropy(model(torch.randn(32, 4)), torch.randint(2, (32,)))
    >>> total = lbe(ce)
    >>> bool(total > ce), list(lbe.last.entropy)
    (True, ['1'])
    """

    alpha: nn.Parameter

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: float = 0.5,
        beta: float = 0.2,
        alpha_min: float = 0.2,
        where: Where | None = None,
        inputs: Any = None,
        convention: Convention = "paper",
        neurons: Neurons = "position",
        channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not beta >= 0 or not alpha_min >= 0:
            raise ValueError(f"beta and alpha_min must not be negative, but they are {beta} and {alpha_min}")
        model = unwrap(model)
        self._constant = entropy_constant(convention)
        self.selection: Selection = select(model, where, inputs=inputs)
        if abs(alpha) < alpha_min:
            warnings.warn(
                f"alpha={alpha} is below alpha_min={alpha_min}: the target is fixed at {alpha_min} and alpha does not learn",
                stacklevel=2,
            )
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        self.alpha = nn.Parameter(
            torch.full((len(self.selection.paths),), float(alpha), dtype=dtype, device=like.device)
        )
        self.beta = float(beta)
        self.alpha_min = float(alpha_min)
        self.convention = convention
        self.neurons = neurons
        self._last: Last | None = None
        self._reader = _Reader(neurons, channel_dim)
        self._taps = Taps(model, self.selection.paths, self._reader)

    def forward(self, loss: Tensor) -> Tensor:
        """Return loss · (1 + L_BE) for the readings of the last forward pass, and forget them."""
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            what = (
                f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise ValueError(f"lbe(loss) needs a scalar loss, not {what}; reduce it with .mean() first")
        if not self.training or not self._reader.model_training:
            self._reader.clear()
            return loss
        batches = self._reader.take()
        self._taps.restart()
        if not batches:
            raise RuntimeError(
                "lbe(loss) found no readings: run model(x) in training mode before each lbe(loss)"
                + "".join(f"\n{name}: {why}" for name, why in self._reader.skipped.items())
            )
        names = tuple(name for batch in batches for name in batch.names)
        position = {path: row for row, path in enumerate(self.selection.paths)}
        rows = tuple(position[path] for batch in batches for path in batch.paths)
        alpha = self.alpha if rows == tuple(range(len(position))) else self.alpha[list(rows)]
        runs = _runs(batches)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            variances, counts, mean_loss = _over_ranks(runs, loss.detach())
        else:
            variances, counts, mean_loss = (
                [run.variance for run in runs],
                [run.count for run in runs],
                loss.detach(),
            )
        scales = [self._constant * n / (n - 1) for n in counts]  # c σ² with σ² unbiased
        total, lbe, entropy = _Total.apply(
            loss, mean_loss, alpha, self.beta, self.alpha_min, scales, *variances
        )  # type: ignore[no-untyped-call]
        self._last = Last(
            names, rows, loss.detach(), lbe, entropy, self.alpha.detach().clone(), self.alpha_min
        )
        return total

    @property
    def last(self) -> Last:
        """What the last call in training mode saw."""
        if self._last is None:
            raise RuntimeError("lbe.last is empty: lbe(loss) has not run in training mode yet")
        return self._last

    @property
    def skipped(self) -> dict[str, str]:
        """Readings that had no entropy, such as integers, with the reason."""
        return dict(self._reader.skipped)

    def parameter_groups(self, model: nn.Module, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, with ``options`` for the model and no weight decay on alpha.

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> groups = LBE(model).parameter_groups(model, weight_decay=1e-4)
        >>> [group["weight_decay"] for group in torch.optim.AdamW(groups).param_groups]
        [0.0001, 0.0]
        """
        return [
            {"params": list(model.parameters()), **options},
            {"params": [self.alpha], **options, "weight_decay": 0.0},
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._taps.remove()
        self._reader.clear()

    def train(self, mode: bool = True) -> "LBE":
        """Switch the term, and the reading of activations, on or off."""
        super().train(mode)
        if "_reader" in self.__dict__:
            self._reader.enabled = mode
        return self

    def extra_repr(self) -> str:
        """Return the settings shown by ``print``."""
        return f"{len(self.selection.paths)} layers, beta={self.beta}, alpha_min={self.alpha_min}, convention={self.convention!r}"

    def get_extra_state(self) -> list[str]:
        """Return the names of the layers, so that a state of other layers is not loaded by mistake."""
        return list(self.selection.paths)

    def set_extra_state(self, state: Any) -> None:
        """Check the names of the layers."""
        if list(state) != list(self.selection.paths):
            differ = sorted(set(state) ^ set(self.selection.paths)) or ["the order"]
            raise ValueError(
                f"this state belongs to an LBE of other layers; they differ in {', '.join(differ[:5])}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reader.enabled = self.training  # a copied model alone has readers that stay switched off

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


@dataclass
class _Batch:
    """Readings whose statistics were taken together: mean and variance ``(readings, n)`` over ``count`` samples."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    mean: Tensor
    variance: Tensor
    count: int


class _Reader:
    """Turns activations into batches of moments as they pass, for the next ``lbe(loss)`` to take."""

    def __init__(self, neurons: Neurons, channel_dim: int | None) -> None:
        self.neurons: Neurons = neurons
        self.channel_dim = channel_dim
        self.enabled = True
        self.model_training = True
        self.skipped: dict[str, str] = {}
        self._overwritten: dict[str, bool] = {}  # whether the model changes this layer's output in place
        self._versions: list[tuple[str, Tensor, int]] = []
        self._pending: list[tuple[str, str, Tensor]] = []  # small activations of one shape
        self._room = 0  # how many more of them make one group
        self._batches: list[_Batch] = []

    def __getstate__(self) -> dict[str, Any]:
        fresh = _Reader(self.neurons, self.channel_dim)
        fresh.enabled = False
        return dict(fresh.__dict__)

    def begin(self, model: nn.Module) -> None:
        """Drop what an earlier pass left; one loss belongs to one pass."""
        if torch.compiler.is_compiling() or _in_backward() == -1:
            self.clear()
            self.model_training = model.training

    def clear(self) -> None:
        """Forget all readings."""
        self._versions.clear()
        self._pending.clear()
        self._batches.clear()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Take the moments of one activation, now or with the next few of its shape."""
        if not self.enabled or not self.model_training:
            return
        name = path if call == 1 else reading_name(path, call)
        if not is_activation(activation):
            self.skipped[name] = "its output holds no floating-point tensor with values"
            return
        if (
            torch.compiler.is_compiling()
        ):  # in-place changes are traced away, and the compiler fuses better than a group
            self._take(path, name, self._samples(name, activation))
            return
        recomputing = _in_backward() != -1
        if not recomputing:
            self._versions.append((path, activation, activation._version))
        if self._overwritten.get(path, True):
            # Until one pass has shown whether the output is changed in place later, and where it is: a copy.
            activation = activation.clone()
        x = self._samples(name, activation)
        # A checkpoint runs a layer again to restore its saved tensors, not to have it read twice.
        if recomputing:
            if not self._is_small(x):
                Moments.apply(x)  # type: ignore[no-untyped-call]
        elif self._pending and self._pending[0][2].shape == x.shape and self._room:
            self._room -= 1
            self._pending.append((path, name, x))
        elif self._is_small(x):
            self._flush()
            self._room = _GROUP // x.numel() - 1
            self._pending.append((path, name, x))
        else:
            self._take(path, name, x)

    def _is_small(self, x: Tensor) -> bool:
        return x.dim() == 2 and x.numel() <= _SMALL and x.is_cpu and x.dtype in (torch.float32, torch.float64)

    def _samples(self, name: str, activation: Tensor) -> Tensor:
        x = samples(activation, self.neurons, self.channel_dim)
        if sample_count(x) < 2:
            raise ValueError(
                f"layer {name}: an activation of shape {tuple(activation.shape)} has one sample per neuron; LBE needs a "
                "batch of at least two (drop_last=True in the data loader avoids a last batch of one)"
            )
        return x

    def _take(self, path: str, name: str, x: Tensor) -> None:
        mean, variance = Moments.apply(x)  # type: ignore[no-untyped-call]
        self._flush()
        self._batches.append(
            _Batch((path,), (name,), mean.unsqueeze(0), variance.unsqueeze(0), sample_count(x))
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        paths, names, xs = zip(*self._pending, strict=True)
        self._pending.clear()
        # A group may reach over several checkpointed regions. What it saves must not count among the tensors that
        # one of them saves, or the recomputation would miss them; hooks of its own keep it out.
        with saved_tensors_hooks(_itself, _itself) if _saving_hooks(True) else nullcontext():
            mean, variance = GroupMoments.apply(*xs)  # type: ignore[no-untyped-call]
        self._batches.append(_Batch(paths, names, mean, variance, sample_count(xs[0])))

    def take(self) -> list[_Batch]:
        """Hand over the readings since the pass began, after checking that none was overwritten unnoticed."""
        self._flush()
        batches = self._batches.copy()
        for path, activation, version in self._versions:
            changed = activation._version != version
            if changed and self._overwritten.get(path) is False:
                self._overwritten[path] = True
                self.clear()
                raise UnsupportedModelError(
                    path,
                    "its output was changed in place in this pass though not in earlier ones; from now on LBE "
                    "keeps a copy, so repeat the step",
                )
            self._overwritten[path] = changed or self._overwritten.get(path, False)
        self.clear()
        return batches


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _runs(batches: list[_Batch]) -> list[_Batch]:
    """Join neighbours with as many neurons and samples, so that what follows is one operation for all of them."""
    runs = []
    for _, same in groupby(
        batches, key=lambda b: (b.variance.shape[-1], b.count, b.variance.device, b.variance.dtype)
    ):
        group = list(same)
        if len(group) == 1:
            runs += group
        else:
            names = tuple(name for batch in group for name in batch.names)
            mean, variance = torch.cat([b.mean for b in group]), torch.cat([b.variance for b in group])
            runs.append(_Batch((), names, mean, variance, group[0].count))
    return runs


def _over_ranks(runs: list[_Batch], loss: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Variance and sample count of every run over the samples of all ranks, and the mean loss, by one all-reduce."""
    sizes = [run.mean.numel() for run in runs]
    counts = [
        torch.full((size,), float(run.count), dtype=torch.float64)
        for size, run in zip(sizes, runs, strict=True)
    ]
    variance, total, loss = _GlobalVariance.apply(  # type: ignore[no-untyped-call]
        torch.cat([run.mean.flatten().to(loss.device) for run in runs]),
        torch.cat([run.variance.flatten().to(loss.device) for run in runs]),
        torch.cat(counts).to(loss.device),
        loss,
    )
    variances = [v.view_as(run.mean) for v, run in zip(variance.split(sizes), runs, strict=True)]
    return variances, [t[0] for t in total.split(sizes)], loss


class _Total(torch.autograd.Function):
    """From variances ``(L_r, n_r)`` of runs of readings to ``loss + |loss| L_BE``, L_BE and the entropies.

    Written by hand because these few numbers cost more calls than arithmetic. With s = c σ² per neuron,
    H = mean ½ log(1 + s), so dH/dσ² = c / (2 n (1 + s)); and d total = d loss (1 + L_BE) + |mean loss| d L_BE, the first
    being d loss alone where the loss is negative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        mean_loss: Tensor,
        alpha: Tensor,
        beta: float,
        alpha_min: float,
        scales: list[float | Tensor],
        *variances: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scaled = [v * scale for v, scale in zip(variances, scales, strict=True)]
        entropies = [torch.log1p(s).mean(-1).to(alpha) for s in scaled]
        entropy = (torch.cat(entropies) if len(entropies) > 1 else entropies[0]).mul_(0.5)
        error = entropy - alpha.abs().clamp_(min=alpha_min)
        lbe = torch.dot(error, error) * (beta / len(error))
        ctx.save_for_backward(mean_loss, error, alpha, lbe, *scaled)
        ctx.settings = (beta, alpha_min, scales)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lbe, entropy)
        return loss + loss.abs() * lbe.to(loss), lbe, entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _lbe: Any, _entropy: Any) -> Any:
        mean_loss, error, alpha, lbe, *scaled = ctx.saved_tensors
        beta, alpha_min, scales = ctx.settings
        by_entropy = error * (grad * mean_loss.abs() * (2 * beta / len(error)))
        by_alpha = (by_entropy * alpha.sign()).mul_(alpha.abs() >= alpha_min).neg_()
        by_variance = [
            (g.to(s) * (scale / (2 * s.shape[-1]))).unsqueeze(-1) / (s + 1)
            for g, s, scale in zip(by_entropy.split([len(s) for s in scaled]), scaled, scales, strict=True)
        ]
        by_loss = grad * (1 + lbe.to(grad) * (mean_loss >= 0))
        return by_loss, None, by_alpha, None, None, None, *by_variance


class _GlobalVariance(torch.autograd.Function):
    """Biased variance over the samples of all ranks from each rank's mean and variance.

    Sums travel in float64, where the square of a mean does not swallow a small variance. The gradient is multiplied
    by the number of ranks, since gradients of parameters are averaged over them.
    """

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, variance: Tensor, count: Tensor, loss: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        m = mean.double()
        sums = torch.cat([count, count * m, count * (variance.double() + m * m), loss.double().view(1)])
        dist.all_reduce(sums)
        total, first, second = sums[:-1].view(3, -1)
        world = dist.get_world_size()
        global_mean = first / total
        global_variance = (second / total - global_mean * global_mean).clamp_(min=0)
        ctx.save_for_backward(m - global_mean, count / total)
        ctx.world = world
        ctx.mark_non_differentiable(total)
        return global_variance.to(variance.dtype), total, (sums[-1] / world).to(loss.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _total: Any, _loss: Any) -> Any:
        offset, share = ctx.saved_tensors
        weighted = grad.double() * share * ctx.world
        return (2 * weighted * offset).to(grad.dtype), weighted.to(grad.dtype), None, None
