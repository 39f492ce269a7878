"""Changing a model so that information gets through: `apply_`, and one file or folder per family of remedy."""

from typing import TYPE_CHECKING

from trainability._lazy import lazily

if TYPE_CHECKING:
    from trainability.remedies.apply import Report as Report, apply_ as apply_
    from trainability.remedies.changes import Change as Change, Plan as Plan
    from trainability.remedies.ic import IC as IC, ICUnit as ICUnit
    from trainability.remedies.initialization import Init as Init
    from trainability.remedies.lbe import LBELoss as LBELoss
    from trainability.remedies.normalization import Normalize as Normalize
    from trainability.remedies.registry import (
        Combination as Combination,
        Entry as Entry,
        Remedy as Remedy,
        combine as combine,
        entry as entry,
        from_dict as from_dict,
        make as make,
        names as names,
        register as register,
    )
    from trainability.remedies.selu import SELU as SELU
    from trainability.remedies.shaping import DKS as DKS, EOC as EOC, TAT as TAT
    from trainability.remedies.shortcuts import Residual as Residual

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
