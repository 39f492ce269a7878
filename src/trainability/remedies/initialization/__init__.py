"""Initializations of the weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainability.errors import check_choice
from trainability.remedies.registry import Remedy, register

if TYPE_CHECKING:
    from torch import nn

    from trainability.introspect.select import Where
    from trainability.remedies.changes import Plan

Scheme = Literal["he", "default", "lecun", "orthogonal", "delta-orthogonal", "suo", "lsuv"]


@register("he", title="He initialization", sets="weights", order=1, preset={"scheme": "he"})
@register(
    "orthogonal",
    title="orthogonal initialization with the gain of ReLU",
    sets="weights",
    order=1,
    preset={"scheme": "orthogonal"},
)
@register("lecun", title="LeCun initialization", sets="weights", order=1, preset={"scheme": "lecun"})
@register(
    "delta-orthogonal",
    title="orthogonal initialization of the central tap of each convolution",
    sets="weights",
    order=1,
    preset={"scheme": "delta-orthogonal"},
)
@register(
    "suo",
    title="orthogonal initialization that keeps the mean square of the signal",
    sets="weights",
    order=1,
    preset={"scheme": "suo"},
)
@register(
    "lsuv",
    title="orthogonal initialization, scaled to outputs of variance 1 on a batch",
    sets="weights",
    order=1,
    preset={"scheme": "lsuv"},
)
@register(
    "pytorch",
    title="PyTorch's default initialization, drawn anew",
    sets="weights",
    order=1,
    preset={"scheme": "default"},
)
@dataclass(frozen=True)
class Init(Remedy):
    """Initialize every weight layer anew.

    ``"default"``: what PyTorch does when a layer is made, uniform weights of variance 1 / (3 fan-in) and uniform
    biases, under which a ReLU network loses a factor 0.41 of its signal per layer. All others set biases to zero.

    ``"he"``: Gaussian weights of variance 2 / fan-in, which keeps the mean square of a ReLU network's signal.

    ``"lecun"``: Gaussian weights of variance 1 / fan-in, which is what SELU needs.

    ``"orthogonal"``: orthonormal rows or columns times the gain at which ``nonlinearity`` is critical,
    1 / √E φ'² (√2 for ReLU); a kernel counts as further inputs. ``"delta-orthogonal"``: the same matrix at the
    central tap of a convolution and zeros at the others.

    ``"suo"``: orthogonal times max(√(outputs / inputs), 1), at the central tap: what shaped activations need.

    ``"lsuv"``: orthonormal, and then each layer in turn scaled so that its outputs have variance 1 on ``inputs``.

    Reference: He et al. (2015), eq. 10; LeCun et al. (1998), section 4.6; Saxe et al. (2014); Xiao et al. (2018),
    algorithm 1; Martens et al. (2021); Mishkin and Matas (2016), algorithm 1.
    """

    scheme: Scheme = "he"
    nonlinearity: str = "relu"

    def __post_init__(self) -> None:
        check_choice("scheme", self.scheme, get_args(Scheme))
        if self.nonlinearity != "relu":
            from trainability.remedies.initialization.plan import gain

            gain(self.nonlinearity)

    def plan(self, model: "nn.Module", where: "Where | None", inputs: Any) -> "Plan":
        """Plan one change per weight layer."""
        from trainability.remedies.initialization.plan import plan

        return plan(self, model, where, inputs)
