"""Independent-component layers: BatchNorm, then Dropout, in front of a weight layer."""

from typing import Literal, get_args

from torch import Tensor, nn

from trainability.errors import check_choice, check_keep
from trainability.nn.norms import FeatureBatchNorm

Kind = Literal["1d", "2d", "3d", "tokens"]
DropoutKind = Literal["element", "channel"]

_CHANNELS: dict[Kind, type[nn.Module]] = {
    "1d": nn.Dropout1d,
    "2d": nn.Dropout2d,
    "3d": nn.Dropout3d,
    "tokens": nn.Dropout1d,
}


class ICLayer(nn.Module):
    """An independent-component layer: BatchNorm, then Dropout, to stand immediately before a weight layer.

    With x̂ what BatchNorm returns and gates g ~ Bernoulli(keep), independent for every entry, the output is g x̂ / keep.
    For x̂ of mean zero the gates scale the correlation of two neurons by ``keep`` and their mutual information by
    ``keep²``. With another mean, such as a trained shift of BatchNorm gives, correlation falls further
    (`trainability.dependence.dropout`).

    Args:
        features: how many neurons, or channels.
        keep: probability of keeping an entry, in (0, 1].
        kind: of the inputs: ``"1d"`` (B, F) or (B, F, L), ``"2d"`` (B, F, H, W), ``"3d"`` (B, F, D, H, W), ``"tokens"``
            (B, ..., F), of which (B, F) is one, too.
        dropout: ``"element"``: every entry is dropped by itself; ``"channel"``: all positions of a feature together.
        affine: whether BatchNorm has a trained scale and shift.
        place: where in a model this stands, for messages.

    Shape:
        The output has the shape of the input.

    Raises:
        ValueError: ``keep`` outside (0, 1], an unknown ``kind`` or ``dropout``; in training, a batch of one.

    Reference: Chen et al. (2019), sections 3 and 4.

    >>> import torch
    >>> layer = ICLayer(8, keep=0.9, kind="tokens")
    >>> layer(torch.randn(4, 5, 8)).shape
    torch.Size([4, 5, 8])
    """

    def __init__(
        self,
        features: int,
        keep: float = 0.95,
        *,
        kind: Kind = "1d",
        dropout: DropoutKind = "element",
        affine: bool = True,
        place: str = "",
    ) -> None:
        super().__init__()
        check_keep(keep)
        check_choice("kind", kind, get_args(Kind))
        check_choice("dropout", dropout, get_args(DropoutKind))
        self.kind: Kind = kind
        self.whole_channels = dropout == "channel"
        self.norm = FeatureBatchNorm(features, last=kind == "tokens", place=place, affine=affine)
        dropped = min(round(1 - keep, 12), 1 - keep) or 0.0  # 0.05 and not 0.050000000000000044
        self.dropout = nn.Dropout(dropped) if dropout == "element" else _CHANNELS[kind](dropped)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, then drop."""
        x = self.norm(x)
        dropped: Tensor
        if not self.whole_channels or self.kind in ("2d", "3d"):
            dropped = self.dropout(x)
        elif self.kind == "tokens":
            dropped = self.dropout(x.reshape(x.shape[0], -1, x.shape[-1]).mT).mT
        else:
            dropped = self.dropout(x if x.dim() == 3 else x.unsqueeze(-1))  # torch would take (B, F) for one sample
        return dropped.reshape(x.shape)
