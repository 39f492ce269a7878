"""A step on a few samples before anything is written: do the model, the data and the task of the user's own fit?"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from trainability._references import naming_the_place, place_of_frame
from trainability.data.dataset import Split
from trainability.errors import ConfigError, TrainabilityError
from trainability.experiments.program import Program, references
from trainability.experiments.recipe import Recipe
from trainability.introspect.outputs import map_tensors
from trainability.introspect.run import call, observing
from trainability.tasks import Task
from trainability.tasks.scoring import Evaluation, samples as samples_in

_SAMPLES = 8


def needs_trial(recipe: Recipe) -> bool:
    """Return whether something could fail to fit: all but labels of the package's data for a model of its own."""
    return bool(references(recipe)) or recipe.task.name != "classification"


def try_out(recipe: Recipe, program: Program, model: nn.Module) -> None:
    """Run a forward and a backward pass of a model on a few samples, and score it, leaving no trace on it.

    Raises:
        ConfigError: something of the user's own raises or does not fit; the message names the place.
    """
    data, task = program.data, program.task(recipe)
    try:
        with naming_the_place():
            parts = {"train": data.train, "validation": data.val, "test": data.test}
            seen = {name: part.first(_SAMPLES) for name, part in parts.items() if len(part)}
            with observing(model):
                _step(task, program, model, seen["train"])
                model.eval()
                with torch.no_grad():
                    for samples in seen.values():
                        _score(task, program, model, samples)
    except ConfigError:
        raise
    except TrainabilityError as error:
        whose = {"targets": f"{data.name}: ", "loss-shape": "", "metric-value": ""}.get(
            error.code, f"{recipe.model.name}: "
        )
        raise ConfigError(f"{whose}{error}", code=error.code) from error


def _step(task: Task, program: Program, model: nn.Module, samples: Split) -> None:
    inputs, targets = program.as_taken(model, samples)
    model.train()
    with noticing_python_draws():
        outputs = call(model, inputs)
    _check(task, outputs, targets)
    for part in (program.data.train, program.data.val, program.data.test):
        if isinstance(part, Split) and len(part) and not program.data.reconstructs:
            _check(task, outputs, part.targets)
    loss = task.losses(*(_as_one_member(nest) for nest in (outputs, targets))).sum()
    if not loss.requires_grad:
        raise ConfigError(
            "the loss does not depend on any parameter that is trained; look for detach(), no_grad() or requires_grad",
            code="no-gradient",
        )
    loss.backward()


def _check(task: Task, outputs: Any, targets: Any) -> None:
    """Check that targets fit outputs, as if there were as many of these."""
    count = samples_in(targets)
    task.check(task.reads(map_tensors(lambda t: t[:1].expand(count, *t.shape[1:]) if t.dim() else t, outputs)), targets)


def _score(task: Task, program: Program, model: nn.Module, samples: Split) -> None:
    inputs, targets = program.as_taken(model, samples)
    evaluation = Evaluation(task, 1)
    evaluation.update(*(_as_one_member(nest) for nest in (call(model, inputs), targets)))
    evaluation.values()


def _as_one_member(nest: Any) -> Any:
    return map_tensors(lambda t: t.unsqueeze(0), nest)


@contextmanager
def noticing_python_draws() -> Iterator[None]:
    """Refuse a pass that draws from Python's or NumPy's generator, which are no part of a checkpoint.

    Raises:
        ConfigError: with the place, as far as it can be seen.
    """
    before = _drawn_from()
    place: list[str] = []

    def watch(frame: FrameType, _event: str, _argument: Any) -> None:
        if not place and _drawn_from() != before:
            place.append(place_of_frame(frame) or "")

    watching = sys.getprofile() is None  # a profiler that is at work is left alone
    if watching:
        sys.setprofile(watch)  # at every call and return: the draw was just before the first that finds a new state
    try:
        yield
    finally:
        if watching:
            sys.setprofile(None)
    after = _drawn_from()
    if before != after:
        whose = "Python's" if before[0] != after[0] else "NumPy's"
        where = f"{place[0]}: " if place and place[0] else ""
        raise ConfigError(
            f"{where}the model draws from {whose} random numbers, which a run that is taken up again would not repeat; "
            "draw from torch, such as torch.rand(())",
            code="draws-in-python",
        )


def _drawn_from() -> tuple[Any, Any]:
    """The states of Python's and of NumPy's generators."""
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else ()
    return random.getstate(), tuple(part.tobytes() if hasattr(part, "tobytes") else part for part in state)
