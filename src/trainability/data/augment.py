"""Augmentation of a whole batch at once, on its device, from a generator of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Maps images ``(B, C, H, W)`` in [0, 1] to the same, with random numbers from the generator."""


@dataclass(frozen=True)
class Augmentation:
    """Random affine maps, brightness and contrast of images in [0, 1], drawn anew for every image.

    The defaults are those of the LBE paper for MNIST: rotation within ±20°, translation by up to a tenth of the image,
    scale 0.9 to 1.1, brightness and contrast factors 0.8 to 1.2. ``flip`` mirrors half of the images.

    >>> generator = torch.Generator().manual_seed(0)
    >>> images = torch.rand(4, 1, 28, 28)
    >>> Augmentation()(images, generator).shape
    torch.Size([4, 1, 28, 28])
    """

    degrees: float = 20.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.2
    contrast: float = 0.2
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Map ``(B, C, H, W)`` in [0, 1] to the same."""
        batch = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(batch, device=images.device).uniform_(low, high, generator=generator)

        angle = uniform(-self.degrees, self.degrees) * (math.pi / 180)
        size = uniform(*self.scale)
        # The grid says where each output pixel comes from, so it holds the inverse map; it spans [-1, 1].
        cos, sin = angle.cos() / size, angle.sin() / size
        if self.flip:
            mirror = (uniform(0, 1) < 0.5).float() * 2 - 1
            cos_x, sin_x = cos * mirror, sin * mirror
        else:
            cos_x, sin_x = cos, sin
        ratio = images.shape[-2] / images.shape[-1]
        shift_x, shift_y = (
            uniform(-2 * self.translate, 2 * self.translate),
            uniform(-2 * self.translate, 2 * self.translate),
        )
        rows = torch.stack([cos_x, sin * ratio, shift_x, -sin_x / ratio, cos, shift_y], dim=1)
        grid = F.affine_grid(rows.view(batch, 2, 3), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, align_corners=False)
        images = images.mul_(_per_image(uniform(1 - self.brightness, 1 + self.brightness))).clamp_(0, 1)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(mean, images, _per_image(uniform(1 - self.contrast, 1 + self.contrast))).clamp_(0, 1)


@dataclass(frozen=True)
class CropFlip:
    """A random crop of each image after padding it with zeros, and a mirror image of half of them.

    >>> CropFlip()(torch.rand(4, 3, 32, 32), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 32, 32])
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Map ``(B, C, H, W)`` to the same."""
        batch, _, height, width = images.shape
        device = images.device

        def shifts() -> Tensor:
            return torch.randint(2 * self.padding + 1, (batch, 1), generator=generator, device=device)

        rows = shifts() + torch.arange(height, device=device)
        columns = shifts() + torch.arange(width, device=device)
        if self.flip:
            mirrored = torch.randint(2, (batch, 1), generator=generator, device=device).bool()
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (self.padding,) * 4)
        each = torch.arange(batch, device=device).view(-1, 1, 1)
        return padded.movedim(1, -1)[each, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


def usual_augmentation(data: str) -> Augment:
    """The usual augmentation of a data set: affine maps of digits, mirrored of clothes, crops of photographs."""
    if data in ("digits", "mnist"):
        return Augmentation()
    return Augmentation(flip=True) if data == "fashion-mnist" else CropFlip()


def _per_image(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
