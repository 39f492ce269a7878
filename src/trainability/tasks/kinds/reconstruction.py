"""Reconstruction: outputs that are to be the inputs again, as of an autoencoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainability.errors import ArgumentError
from trainability.tasks.base import Chance, Loss, Task, TaskKind
from trainability.tasks.metrics import Metric, error
from trainability.tasks.pairing import check_tensor, exact
from trainability.tasks.registry import register

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = 11  # pixels of each side of SSIM's Gaussian window
_SIGMA = 1.5  # the standard deviation of the window, in pixels
_C1, _C2 = 0.01**2, 0.03**2


@register("reconstruction")
@dataclass(frozen=True)
class Reconstruction(TaskKind):
    """An error of outputs and targets in [0, 1], and the mean structural similarity (SSIM) of images.

    Data sets by name give their images as targets; data of one's own give them as targets themselves. Targets are
    ``(N, C, H, W)`` or ``(N, H, W)``, or anything else with ``metric: mse``; outputs have their shape, or are flat. The
    error of a sample is the mean over its pixels.

    SSIM is that of Wang et al. (2004), eq. 13, with a Gaussian window of 11 × 11 pixels, standard deviation 1.5, and
    constants 0.01 and 0.03: the mean over channels and over the places where the window lies within the image.

    Args:
        loss: what is trained on: bce, the binary cross-entropy of every pixel in nats, or squared
        outputs: what the model returns: logits, to which a sigmoid is applied here, as the package's own models do; or
            unit, values in [0, 1], as of a model that ends in a sigmoid
        metric: by which networks are compared: ssim, of images of 11 × 11 pixels or more, or mse
    """

    loss: Literal["bce", "squared"] = "bce"
    outputs: Literal["logits", "unit"] = "logits"
    metric: Literal["ssim", "mse"] = "ssim"

    def task(self) -> Task:
        """The task."""
        loss = Loss(self._bce, "cross-entropy", "BCE", "nats") if self.loss == "bce" else Loss(self._mse, *_SQUARED)
        ssim = Metric(
            "ssim", "max", self._ssim, worst=-1.0, forms=(".4f", ".3f", ".2f"), resolution=0.00005, limits=(-0.05, 1.05)
        )
        mse = error("mse", self._mse)
        if self.metric == "mse":
            chance = Chance(_variance, *_MEAN, margin=0.05, relative=True)
        else:
            chance = Chance(_ssim_of_mean, *_MEAN, margin=0.05)
        metrics = (mse,) if self.metric == "mse" else (ssim, mse)
        return Task("reconstruction", loss, metrics, chance, reconstructs=True, check=self._check)

    def _values(self, outputs: "Tensor", targets: "Tensor") -> "tuple[Tensor, Tensor]":
        """The outputs as values in [0, 1], and the targets."""
        viewed, originals = _viewed(outputs, targets)
        return viewed.sigmoid() if self.outputs == "logits" else viewed, originals

    def _bce(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        from torch.nn import functional

        logits, originals = _viewed(outputs, targets)
        if self.outputs == "unit":
            # torch's binary_cross_entropy raises for NaN, so that one network that diverged would end all others, and
            # under autocast.
            logits = logits.logit(eps=1e-7)
        loss = functional.binary_cross_entropy_with_logits(logits, originals, reduction="none")
        return loss.flatten(1).mean(1)

    def _mse(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        values, originals = self._values(outputs, targets)
        return (values - originals).square().flatten(1).mean(1)

    def _ssim(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        return ssim(*self._values(outputs, targets))

    def _check(self, outputs: "Tensor", targets: "Tensor") -> None:
        """Raise ArgumentError for targets that are not in [0, 1], and for outputs of another size or range."""
        check_tensor("reconstruction", targets)
        if not targets.is_floating_point() or targets.dim() < 2:
            raise ArgumentError(
                f"reconstruction takes the inputs themselves as targets, real numbers in [0, 1], and the targets are "
                f"{targets.dtype} {tuple(targets.shape)}",
                code="targets",
            )
        low, high = float(targets.min()), float(targets.max())
        if low < 0 or high > 1:
            raise ArgumentError(
                f"reconstruction takes targets in [0, 1], and they go from {low:.3g} to {high:.3g}; scale them, or "
                "take task: regression",
                code="targets",
            )
        if self.metric == "ssim":
            _check_ssim(targets)
        low, high = float(outputs.detach().min()), float(outputs.detach().max())
        if self.outputs == "unit" and self.loss == "bce" and (low < 0 or high > 1):
            raise ArgumentError(
                f"task.outputs: unit means values in [0, 1], and the model returns {low:.3g} to {high:.3g}; end it in "
                "a sigmoid, or write outputs: logits",
                code="outputs",
            )
        _viewed(outputs, targets)


_SQUARED = ("squared error", "SE")
_MEAN = ("always the mean image", "mean image")


def ssim(images: "Tensor", originals: "Tensor") -> "Tensor":
    """Mean SSIM of each of the images ``(N, C, H, W)`` or ``(N, H, W)`` with its original, both in [0, 1]: ``(N,)``.

    torchmetrics counts places where its window sees padding, too, which moves the mean by some hundredths on small
    images, and takes fifteen times as long.

    Raises:
        ArgumentError: they are no images, or have less than 11 pixels on a side.

    >>> import torch
    >>> image = torch.rand(2, 1, 16, 16)
    >>> ssim(image, image)
    tensor([1., 1.])
    """
    _check_ssim(originals)
    # In float32 a variance is lost where it is small beside the square of the mean.
    x, y = (t if t.device.type == "mps" else t.double() for t in (images, originals))
    down, across = (_windows(size, x) for size in x.shape[-2:])

    def mean(t: "Tensor") -> "Tensor":
        return down @ t @ across.T

    mean_x, mean_y = mean(x), mean(y)
    spread = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    joint = mean(x * y) - mean_x * mean_y
    found = (2 * mean_x * mean_y + _C1) * (2 * joint + _C2) / ((mean_x**2 + mean_y**2 + _C1) * (spread + _C2))
    return found.flatten(1).mean(1).to(images.dtype)


def _windows(size: int, like: "Tensor") -> "Tensor":
    """The weights of the window at every place within a side, ``(size - 10, size)``."""
    import torch

    places, pixels = (torch.arange(n, device=like.device).to(like) for n in (size - _WINDOW + 1, size))
    away = pixels - places.unsqueeze(1) - _WINDOW // 2
    weights = torch.where(away.abs() <= _WINDOW // 2, (-(away**2) / (2 * _SIGMA**2)).exp(), 0)
    return weights / weights.sum(1, keepdim=True)


def _check_ssim(targets: "Tensor") -> None:
    if targets.dim() not in (3, 4) or min(targets.shape[-2:]) < _WINDOW:
        raise ArgumentError(
            f"SSIM is of images of {_WINDOW} × {_WINDOW} pixels or more, and the targets are {tuple(targets.shape)}; "
            "write task: {name: reconstruction, metric: mse}",
            code="targets",
        )


def _viewed(outputs: "Tensor", targets: "Tensor") -> "tuple[Tensor, Tensor]":
    """Outputs in the shape of the targets ``(N, ...)``, and these, of one real type, float32 at the least."""
    flat = outputs.dim() == 2 and outputs.numel() == targets.numel() and len(outputs) == len(targets)
    if outputs.shape != targets.shape and not flat:
        raise ArgumentError(
            f"the model returns {tuple(outputs.shape)} for targets {tuple(targets.shape)}; it should return their "
            f"shape, or ({len(targets)}, {targets[0].numel()})",
            code="outputs",
        )
    return exact(outputs.reshape(targets.shape), targets)


def _variance(targets: "Tensor") -> float:
    return float(targets.var(0, correction=0).mean())


def _ssim_of_mean(targets: "Tensor") -> float:
    mean = targets.mean(0, keepdim=True)
    return float(sum(ssim(mean.expand_as(part), part).sum() for part in targets.split(1024)) / len(targets))
