"""Scikit-learn's handwritten digits, which come with it."""

from typing import TYPE_CHECKING

from trainability.data.registry import Request, register
from trainability.errors import DataError

if TYPE_CHECKING:
    from trainability.data.dataset import Dataset


@register("digits")
def load_digits(name: str, request: Request) -> "Dataset":
    """Read 1,797 images of 8 × 8 in ten classes, of which 360 are kept for testing."""
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise DataError(
            "digits comes with scikit-learn: pip install 'trainability[experiments]'", code="missing-extra"
        ) from error
    import torch

    from trainability.data.dataset import Split, split

    bunch = read()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # 0 to 16 in the source
    pool = Split(images, torch.from_numpy(bunch.target).long())
    held_out = 360 if request.held_out is None else request.held_out
    return split(name, 10, pool, None, held_out, "scikit-learn", request.split_seed, tested=360)
