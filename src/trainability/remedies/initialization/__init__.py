"""Initializations of the weights."""

from dataclasses import dataclass
from typing import Literal, get_args

from trainability.errors import check_choice
from trainability.remedies.registry import BuiltIn, register

Scheme = Literal["he", "default", "lecun", "orthogonal", "delta-orthogonal", "suo", "lsuv"]


@dataclass(frozen=True)
class Init(BuiltIn):
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

    Args:
        scheme: one of these
        nonlinearity: of which ``"orthogonal"`` takes the gain, by name

    Reference: He et al. (2015), eq. 10; LeCun et al. (1998), section 4.6; Saxe et al. (2014); Xiao et al. (2018),
    algorithm 1; Martens et al. (2021); Mishkin and Matas (2016), algorithm 1.
    """

    scheme: Scheme = "he"
    nonlinearity: str = "relu"

    def __post_init__(self) -> None:
        check_choice("scheme", self.scheme, get_args(Scheme))
        if not isinstance(self.nonlinearity, str) or self.nonlinearity != "relu":
            from trainability.remedies.initialization.plan import gain

            gain(self.nonlinearity)


for _name, _title in {
    "he": "He initialization",
    "orthogonal": "orthogonal initialization with the gain of ReLU",
    "lecun": "LeCun initialization",
    "delta-orthogonal": "orthogonal initialization of the central tap of each convolution",
    "suo": "orthogonal initialization that keeps the mean square of the signal",
    "lsuv": "orthogonal initialization, scaled to outputs of variance 1 on a batch",
    "pytorch": "PyTorch's default initialization, drawn anew",
}.items():
    _scheme = "default" if _name == "pytorch" else _name
    register(_name, title=_title, sets="weights", order=1, preset={"scheme": _scheme})(Init)
