"""Data sets as tensors of uint8 on the device, with seeded splits and augmentation in batch."""

from trainability.data.registry import load

__all__ = ["load"]
