"""Layerwise batch-entropy regularization (LBE): a loss term that keeps information flowing through every layer."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainability.entropy import Convention, entropy_constant
from trainability.errors import ArgumentError, StateError, check_number
from trainability.introspect.hooks import Taps
from trainability.introspect.run import unwrap
from trainability.introspect.select import DID_NOT_RUN, Selection, Where, select
from trainability.lbe.first_pass import FirstPassCheck
from trainability.lbe.last_call import LastCall
from trainability.lbe.loss import regularized_loss
from trainability.lbe.ranks import scaled_variances
from trainability.lbe.statistics import StatisticsReader, merge
from trainability.moments import Neurons, check_neurons, transformed

_LARGEST = torch.finfo(torch.float32).max


class LBE(nn.Module):
    """Layerwise batch-entropy regularization of a model, in one line of any training loop.

    With H^l the batch entropy of layer l over the mini-batch,

        L^l   = (H^l − max(alpha_min, |alpha^l|))²                      (eq. 4)
        L_BE  = (beta / L) Σ_l L^l                                      (eq. 5)
        total = loss · (1 + L_BE)                                       (eq. 6), with the loss not detached

    and, where a loss is negative, loss + |loss| · L_BE with |loss| detached, so that leaving alpha is never rewarded.
    The model is not changed; hooks read its activations. Where ``forward`` calls an activation as a function, such as
    ``F.relu``, its result is read at the module that returns it or is given it (`trainability.select`). In ``eval()``,
    of this module or of the model, the loss is returned as it is; a pass in evaluation or without gradients between
    ``model(x)`` and ``lbe(loss)`` changes nothing.

    Over several ranks (DistributedDataParallel, FSDP) the statistics are those of the global batch, by one
    all-reduce of fixed shape per call, and the gradients are right for ranks that are averaged.

    Args:
        model: the model; it may be wrapped in `torch.compile` or DistributedDataParallel.
        alpha: initial target of every layer, in nats; learned, one per layer.
        beta: strength.
        alpha_min: floor of the targets. An alpha below it is inert.
        where: which layers (`trainability.select`); the default is every hidden nonlinearity.
        inputs: an example batch. Needed by the default where activations are called as functions and the model cannot
            be traced: it is run once, to find where their results can be read.
        convention: ``"paper"`` (2πe) or ``"published-code"`` (πe, and half the gradient for an alpha that is alpha_min
            exactly; the tables of the paper).
        neurons: what counts as a neuron (`trainability.batch_entropy`).
        channel_dim: as in `trainability.batch_entropy`.

    Attributes:
        alpha: the learnable targets ``(L,)``, in the order of ``selection.paths``.
        selection: which layers, and the account of it.
        last: an account of the last call.

    Raises:
        ValueError: ``beta`` or ``alpha_min`` negative, ``where`` matches nothing, or ``inputs`` are needed. A call
            raises it for a loss that is not a scalar.
        UnsupportedModelError: the result of an activation called as a function cannot be read.
        RuntimeError: a call without a forward pass with a graph before it, or after one on a batch of one.

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
        for name, value in {"alpha": alpha, "beta": beta, "alpha_min": alpha_min}.items():
            check_number(name, value)
        alpha, beta, alpha_min = float(alpha), float(beta), float(alpha_min)
        if beta < 0 or alpha_min < 0:
            raise ArgumentError(f"beta={beta}, alpha_min={alpha_min}: they must not be negative", code="out-of-range")
        if max(abs(alpha), beta, alpha_min) > _LARGEST:
            raise ArgumentError(
                f"alpha={alpha}, beta={beta}, alpha_min={alpha_min}: they must lie within the range of float32",
                code="out-of-range",
            )
        check_neurons(neurons, channel_dim)
        model = unwrap(model)
        self._constant = entropy_constant(convention)
        with _training_mode(model):
            self.selection: Selection = select(model, where, inputs=inputs)
        self.selection.check_complete()
        if abs(alpha) < alpha_min:
            warnings.warn(
                f"alpha={alpha} is below alpha_min={alpha_min}: the target is fixed there and alpha does not learn",
                stacklevel=2,
            )
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        self.alpha = nn.Parameter(torch.full((len(self.selection.places),), alpha, dtype=dtype, device=like.device))
        self.beta = beta
        self.alpha_min = alpha_min
        self.convention = convention
        self.neurons = neurons
        self.channel_dim = channel_dim
        self._last: LastCall | None = None
        self._row_of = {path: row for row, path in enumerate(self.selection.paths)}
        self._rows: tuple[tuple[int, ...], Tensor] | None = None
        self._halved = convention == "published-code"
        self._reader = StatisticsReader(neurons, channel_dim, owner=self)
        self._taps = Taps(model, self.selection.places, self._reader)
        self._check = (
            FirstPassCheck(model, self.selection, self._taps) if where is None and self.selection.remark else None
        )

    def forward(self, loss: Tensor) -> Tensor:
        """Return loss · (1 + L_BE) for the readings of the last training pass, and forget them."""
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
            what = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ArgumentError(
                f"lbe(loss) needs a loss that is one real number, not {what}; reduce it with .mean() first",
                code="loss-not-a-number",
            )
        if not self.training or self._is_of_evaluation(loss):
            return loss
        if loss.device != self.alpha.device:
            raise ArgumentError(
                f"the loss is on {loss.device} and alpha on {self.alpha.device}; "
                "move the LBE to the model's device with lbe.to(...)",
                code="device-differs",
            )
        batches = self._reader.take()
        self._taps.restart()
        if not batches:
            raise self._no_readings()
        names = tuple(name for batch in batches for name in batch.names)
        rows = tuple(self._row_of[path] for batch in batches for path in batch.paths)
        alpha = self.alpha if rows == tuple(range(len(self._row_of))) else self.alpha[self._index(rows)]
        variances, scales, mean_loss = scaled_variances(merge(batches), loss.detach(), self._constant)
        settings = (self.beta, self.alpha_min, self._halved, scales)
        total, lbe, entropy = regularized_loss(loss, mean_loss, alpha, *settings, *variances)
        # What torch.func works on means nothing outside of it.
        values = (loss.detach(), lbe, entropy, self.alpha.detach().clone())
        self._last = None if any(map(transformed, values)) else LastCall(names, rows, *values, self.alpha_min)
        return total

    def _is_of_evaluation(self, loss: Tensor) -> bool:
        """True for the loss of a pass in evaluation, which may come between a training pass and its loss."""
        reader = self._reader
        if reader.model_training or not reader.waiting:
            return not reader.model_training
        if loss.requires_grad and not reader.with_graph:
            return False
        if not torch.is_grad_enabled():
            return True
        raise StateError(
            "after model(x) in training mode the model ran in evaluation, so that it is not clear whose loss this is; "
            "call lbe(loss) before that, or run the evaluation under torch.no_grad()",
            code="which-pass",
        )

    def _no_readings(self) -> StateError:
        if self._reader.without_graph:
            return StateError(
                "lbe(loss) found readings without a graph only: model(x) ran under torch.no_grad() or inference_mode, "
                "so the term would not train it; run model(x) with gradients, or lbe(loss) without them, too",
                code="no-graph",
            )
        reasons = self._reader.skipped or dict.fromkeys(self.selection.paths[:5], DID_NOT_RUN)
        return StateError(
            "lbe(loss) found no readings: run model(x) in training mode before each lbe(loss), on a batch of two "
            "or more" + "".join(f"\n{name}: {why}" for name, why in reasons.items()),
            code="no-readings",
        )

    def _index(self, rows: tuple[int, ...]) -> Tensor:
        """``rows`` on the device, sent there once for a model that calls the same layers every time."""
        if self._rows is None or self._rows[0] != rows or self._rows[1].device != self.alpha.device:
            self._rows = (rows, torch.tensor(rows, device=self.alpha.device))
        return self._rows[1]

    @property
    def last(self) -> LastCall:
        """An account of the last call in training mode."""
        if self._last is None:
            raise StateError(
                "lbe.last is empty: lbe(loss) has not run in training mode yet, or ran within torch.func",
                code="no-last",
            )
        return self._last

    @property
    def skipped(self) -> dict[str, str]:
        """Readings that had no entropy, such as integers, and layers that did not run in the last pass."""
        idle = set(self.selection.paths) - {self.selection.paths[row] for row in self._last._rows} if self._last else ()
        return {**dict.fromkeys(sorted(idle), DID_NOT_RUN), **self._reader.skipped}

    def parameter_groups(self, model: nn.Module, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, with ``options`` for the model and no weight decay on alpha.

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
        if self._check is not None:
            self._check.handle.remove()
        self._reader.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def extra_repr(self) -> str:
        """Return the settings shown by ``print``."""
        settings = f"beta={self.beta}, alpha_min={self.alpha_min}, convention={self.convention!r}"
        return f"{len(self.selection.places)} layers, {settings}"

    def get_extra_state(self) -> list[str]:
        """Return the names of the layers, so that a state of other layers is not loaded by mistake."""
        return list(self.selection.paths)

    def set_extra_state(self, state: Any) -> None:
        """Nothing is left to do: the names were checked before anything was loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = list(self.selection.paths)
        names = state_dict.get(f"{prefix}_extra_state", own)
        alpha = state_dict.get(f"{prefix}alpha", self.alpha)
        if names != own or not isinstance(alpha, Tensor) or alpha.shape != self.alpha.shape:
            theirs = {str(name) for name in names} if isinstance(names, list | tuple) else {str(names)}
            differ = sorted(theirs ^ set(own)) or ["the order"]
            raise ArgumentError(
                f"this state belongs to an LBE of other layers; they differ in {', '.join(differ[:5])}",
                code="state-of-other-layers",
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._reader.owner = self  # a copied model alone has readers without one, which read nothing

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """A model as it trains, since that is when it is read: in evaluation it may call other functions."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if not model.training:
            model.train()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
