"""Changing a model so that information gets through: `apply_`, and one file or folder per family of remedy."""

from typing import TYPE_CHECKING

from trainability._lazy import lazily

if TYPE_CHECKING:
    from trainability.remedies.apply import Report, apply_
    from trainability.remedies.changes import Change, Plan
    from trainability.remedies.ic import IC, ICUnit
    from trainability.remedies.initialization import Init
    from trainability.remedies.lbe import LBELoss
    from trainability.remedies.normalization import Normalize
    from trainability.remedies.registry import (
        Combination,
        Entry,
        Remedy,
        combine,
        entry,
        from_dict,
        make,
        names,
        register,
    )
    from trainability.remedies.selu import SELU
    from trainability.remedies.shaping import DKS, EOC, TAT
    from trainability.remedies.shortcuts import Residual

__all__ = [
    "DKS",
    "EOC",
    "IC",
    "SELU",
    "TAT",
    "Change",
    "Combination",
    "Entry",
    "ICUnit",
    "Init",
    "LBELoss",
    "Normalize",
    "Plan",
    "Remedy",
    "Report",
    "Residual",
    "apply_",
    "combine",
    "entry",
    "from_dict",
    "make",
    "names",
    "register",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "apply": ("Report", "apply_"),
        "changes": ("Change", "Plan"),
        "ic": ("IC", "ICUnit"),
        "initialization": ("Init",),
        "lbe": ("LBELoss",),
        "normalization": ("Normalize",),
        "registry": (
            *("Combination", "Entry", "Remedy", "combine", "entry"),
            *("from_dict", "make", "names", "register"),
        ),
        "selu": ("SELU",),
        "shaping": ("DKS", "EOC", "TAT"),
        "shortcuts": ("Residual",),
    },
)
