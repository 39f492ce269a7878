"""Changing a model so that information gets through: `apply_` and one file per family of remedy."""

from trainability.remedies.apply import Change, Remedy, Report, apply_
from trainability.remedies.init import Init

__all__ = ["Change", "Init", "Remedy", "Report", "apply_"]
