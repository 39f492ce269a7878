"""The account of a call of LBE."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LastCall:
    """An account of the last ``lbe(loss)``. Reading a value waits for the device; nothing before that does."""

    _names: tuple[str, ...]
    _rows: tuple[int, ...]
    _loss: Tensor
    _lbe: Tensor
    _entropy: Tensor
    _alpha: Tensor
    _alpha_min: float

    @property
    def ce(self) -> float:
        """The loss that was passed in; on several ranks, this rank's."""
        return float(self._loss)

    @property
    def lbe(self) -> float:
        """L_BE of eq. 5, the relative weight of the term: the total was ce + |ce| lbe."""
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
        below = (self._alpha.abs() < self._alpha_min).tolist()  # in the precision of alpha, as the term compares
        return tuple(name for name, row in zip(self._names, self._rows, strict=True) if below[row])

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Readings whose entropy is NaN or infinite, in the order in which they ran."""
        return tuple(name for name, value in self.entropy.items() if not value < float("inf"))
