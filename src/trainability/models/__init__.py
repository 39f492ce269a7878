"""Architectures of the experiments, as plain modules without special casing."""

from trainability.models.fnn import fnn

__all__ = ["fnn"]
