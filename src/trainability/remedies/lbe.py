"""LBE as a remedy: it changes the loss and not the model."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from trainability.errors import ArgumentError, ArgumentTypeError, check_choice, check_number
from trainability.remedies.registry import Remedy, register

if TYPE_CHECKING:
    from torch import nn

    from trainability.lbe.module import LBE


@register("lbe", title="LBE in the loss", sets="loss", order=3)
@dataclass(frozen=True)
class LBELoss(Remedy):
    """The settings of `trainability.LBE`, the layerwise batch-entropy regularization of a loss.

    Args:
        alpha: initial target of every layer, in nats.
        beta: strength.
        alpha_min: floor of the targets.
        convention: ``"paper"`` or ``"published-code"``.
        neurons: ``"position"`` or ``"channel"``.
        where: glob of the layers that are regularized, such as ``"blocks.*.relu"``; every hidden nonlinearity unless
            given.

    Reference: Peer et al. (2022), eq. 3 to 6.

    >>> from torch import nn
    >>> LBELoss(beta=0.1).module(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    LBE(1 layers, beta=0.1, alpha_min=0.2, convention='paper')
    """

    alpha: float = 0.5
    beta: float = 0.2
    alpha_min: float = 0.2
    convention: Literal["paper", "published-code"] = "paper"
    neurons: Literal["position", "channel"] = "position"
    where: str | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "alpha_min"):
            check_number(name, getattr(self, name))
        if self.beta < 0 or self.alpha_min < 0:
            raise ArgumentError(
                f"beta={self.beta}, alpha_min={self.alpha_min}: they must not be negative", code="out-of-range"
            )
        check_choice("convention", self.convention, ("paper", "published-code"))
        check_choice("neurons", self.neurons, ("position", "channel"))
        if self.where is not None and not isinstance(self.where, str):
            raise ArgumentTypeError(f"where is a glob such as 'blocks.*', not {self.where!r}", code="wrong-type")

    def module(self, model: "nn.Module", inputs: Any = None) -> "LBE":
        """The module that makes the loss of a model: ``loss = lbe(loss)``."""
        from trainability.lbe.module import LBE

        return LBE(model, inputs=inputs, **asdict(self))

    def plan(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: there is nothing to change in a model."""
        raise ArgumentTypeError(
            "LBE changes the loss and not the model, so apply_ has nothing to do; write lbe = LBE(model) and then "
            "loss = lbe(loss) in the training loop",
            code="remedy-of-the-loss",
        )
