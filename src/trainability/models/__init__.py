"""Architectures of the experiments, as plain modules without special casing."""

from trainability.models.cnn import cnn
from trainability.models.fnn import fnn
from trainability.models.resnet import resnet

__all__ = ["cnn", "fnn", "resnet"]
