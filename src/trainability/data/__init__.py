"""Data sets as tensors of uint8 on the device, with seeded splits and augmentation in batch."""

from trainability.data.dataset import Dataset, Split
from trainability.data.folder import FolderOptions, folder_options
from trainability.data.load import NAMES, check_name, load
from trainability.data.pln import PLN, per_location_normalize
from trainability.errors import DataError

__all__ = [
    "NAMES",
    "PLN",
    "DataError",
    "Dataset",
    "FolderOptions",
    "Split",
    "check_name",
    "folder_options",
    "load",
    "per_location_normalize",
]
