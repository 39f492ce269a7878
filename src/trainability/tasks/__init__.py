"""Tasks: the loss and the metrics by which the outputs of a model are scored, by name."""

from trainability.tasks.base import Chance, Loss, Metric, Task, prediction_of
from trainability.tasks.registry import names, register, task

__all__ = ["Chance", "Loss", "Metric", "Task", "names", "prediction_of", "register", "task"]
