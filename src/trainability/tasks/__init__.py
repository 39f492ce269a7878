"""Tasks: the loss and the metrics by which the outputs of a model are scored, by name."""

from trainability.tasks.base import Chance, Loss, Task, TaskKind, prediction_of
from trainability.tasks.metrics import Meter, Metric
from trainability.tasks.registry import names, register, task

__all__ = ["Chance", "Loss", "Meter", "Metric", "Task", "TaskKind", "names", "prediction_of", "register", "task"]
