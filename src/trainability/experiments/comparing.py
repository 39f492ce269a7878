"""The comparison of remedies on a user's own model and data, from Python."""

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainability._references import is_reference, load, reference_to
from trainability.errors import ArgumentError, ArgumentTypeError, MissingExtraError

if TYPE_CHECKING:
    from trainability.experiments.comparison import Comparison
    from trainability.remedies.registry import Remedy

Direction = Literal["max", "min"]


def compare(
    make_model: Callable[..., Any],
    data: Any,
    *,
    remedies: "Sequence[str | Remedy | Sequence[Any]]" = ("default", "he", "lbe"),
    loss_fn: Callable[[Any, Any], Any] | None = None,
    metrics: Mapping[str, tuple[Any, Direction]] | None = None,
    task: str | Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 3,
    epochs: int = 5,
    lr: float | Sequence[float] = 1e-3,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    existing: Literal["refuse", "resume", "overwrite"] = "refuse",
    progress: bool = True,
) -> "Comparison":
    """Train a model with several remedies side by side, each over the same seeds, and say which one to take.

    Every seed of a remedy is a network of its own; a seed means the same initial weights where the initialization is
    the same, and the same batches. Networks that can be stacked train at once; others one after another, which the
    notes of the result say.

    Args:
        make_model: returns a new model; called as ``make_model(**options)`` after ``torch.manual_seed(seed)``, once for
            every network.
        data: a mapping with ``train``, ``validation`` and, if there is one, ``test``; a list of two or three parts in
            that order; or one part, which is split 70/15/15. A part is a pair ``(inputs, targets)`` of tensors or
            arrays, a map-style dataset, or a loader. A function is called for its data. Inputs are given to the model
            as in `trainability.measure`.
        remedies: names, names joined by ``+``, objects such as ``TAT(eta=0.8)``, or lists of these that go together.
        loss_fn: of the model's outputs and the targets: one number, or one for each sample. Without it the task is
            classification.
        metrics: by name, what is computed of outputs and targets, and whether ``"max"`` or ``"min"`` is better: a
            function of all outputs and targets of a part, or an object or class of torchmetrics. The first one decides.
            Without any, the loss does.
        task: in place of ``loss_fn`` a task by name, or a mapping of its name and settings.
        seeds: a number or a list.
        epochs: passes over the training part.
        lr: learning rate of Adam; of several each is compared.
        batch_size: samples per step and network; 128, or all samples if they are fewer, or that of the loader.
        options: arguments of ``make_model``.
        settings: any others of a recipe by their dotted names: ``{"optimizer.name": "sgd", "engine.device": "cuda"}``;
            those of which a list is given are compared over it: ``{"model.options.depth": [10, 30]}``.
        out: a folder for the report and for checkpoints, from which it can be resumed; none unless given.
        existing: what becomes of a folder that holds results.
        progress: show a bar on standard error.

    Returns:
        What came of it: ``print(comparison)``, ``comparison.report("report.html")``, ``comparison.to_dict()``.

    Raises:
        TrainabilityError: a setting, the model, the data or the loss cannot be used; the message names the place.
        MissingExtraError: what comes with ``trainability[experiments]`` is not installed.

    >>> import torch
    >>> from torch import nn
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> def make_model(depth=2):
    ...     return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 1))
    >>> comparison = compare(make_model, (x, x.sum(1, keepdim=True)), remedies=["default", "he"],
    ...                      loss_fn=nn.functional.mse_loss, seeds=2, epochs=1, progress=False)
    >>> [result["remedy"] for result in comparison.to_dict()["results"]]
    ['default', 'default', 'he', 'he']
    """
    try:
        from trainability.experiments.reading import read_recipe
        from trainability.experiments.run import run
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"compare needs {error.name}, which comes with an extra: pip install 'trainability[experiments]'",
            code="missing-extra",
        ) from error
    import torch

    from trainability.data.own import data_of, own_data
    from trainability.data.seeding import drawing

    _check_makes_models(make_model)
    given, dataset = _Given(), own_data(data_of(data, {}), "data")
    changes: dict[str, Any] = {
        "model": {"name": given.keep(make_model), "options": dict(options or {})},
        "data": {"name": given.keep(dataset, "data")},
        "remedies": [list(entry) if isinstance(entry, tuple) else entry for entry in _listed(remedies)],
        "seeds": int(seeds) if isinstance(seeds, Integral | int) else [int(seed) for seed in seeds],
        "epochs": epochs,
        "optimizer.lr": float(lr) if isinstance(lr, Real | float) else [float(rate) for rate in lr],
        **_scored_by(loss_fn, metrics, task, given),
    }
    changes["batch_size"] = max(2, min(128, len(dataset.train))) if batch_size is None else batch_size
    for name, value in (settings or {}).items():
        if name in changes:
            own = name.rpartition(".")[2]
            raise ArgumentError(f"settings: {name} is an argument of compare; give {own}= instead", code="duplicate")
        changes[name] = value
    with ExitStack() as opened:
        folder = Path(out) if out is not None else Path(opened.enter_context(tempfile.TemporaryDirectory())) / "run"
        recipe = read_recipe(None, changes, "compare")
        show = opened.enter_context(_bar()) if progress else lambda *_: None
        opened.enter_context(drawing(0))  # the random state is as it was afterwards
        opened.enter_context(torch.enable_grad())
        return run(recipe, folder, existing=existing, progress=show, resolve=given.resolve)


def _listed(remedies: Any) -> Any:
    """A list of remedies, also of names with commas between them."""
    return remedies.split(",") if isinstance(remedies, str) else remedies


def _scored_by(
    loss_fn: Any, metrics: Mapping[str, tuple[Any, Direction]] | None, task: Any, given: "_Given"
) -> dict[str, Any]:
    """The task of the recipe."""
    if loss_fn is None:
        if metrics:
            raise ArgumentError("metrics are of a loss of one's own; give loss_fn as well", code="missing-setting")
        return {"task": task} if task is not None else {}
    if task is not None:
        raise ArgumentError("loss_fn and task are two ways to say the same; give one", code="settings-conflict")
    if not callable(loss_fn):
        raise ArgumentTypeError(f"loss_fn is a function of outputs and targets, not {loss_fn!r}", code="wrong-type")
    found = {}
    for name, metric in (metrics or {}).items():
        if not isinstance(metric, list | tuple) or len(metric) != 2:
            raise ArgumentTypeError(
                f"metrics: {name} is a pair of a function and 'max' or 'min', not {metric!r}", code="wrong-type"
            )
        found[name] = {"of": given.keep(metric[0], name), "direction": metric[1]}
    return {"loss": given.keep(loss_fn, "loss"), "metrics": found}


def _check_makes_models(make_model: Any) -> None:
    from torch import nn

    if isinstance(make_model, nn.Module):
        raise ArgumentTypeError(
            "make_model is a model; give a function that returns a new one, since every seed needs its own: "
            "lambda: Net(...)",
            code="not-a-function",
        )
    if not callable(make_model):
        raise ArgumentTypeError(f"make_model is a function that returns a model, not {make_model!r}", code="wrong-type")


class _Given:
    """What was given as objects, by the references under which the recipe knows them."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}

    def keep(self, thing: Any, name: str = "") -> str:
        """The reference to an object, by its own name if it has one."""
        named = inspect.isroutine(thing) or isinstance(thing, type)
        reference = reference_to(thing) if named else f"given:{name}"
        number = 1
        while reference in self._objects and self._objects[reference] is not thing:
            number += 1
            reference = f"{reference.partition('#')[0]}#{number}"
        self._objects[reference] = thing
        return reference

    def resolve(self, reference: str) -> Any:
        """The object of a reference."""
        found = self._objects.get(reference)
        return load(reference) if found is None and is_reference(reference) else found


def _bar() -> Any:
    """A bar on standard error, as a context that gives what is told of every step."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            number = bar.add_task("comparing", total=None)
            yield lambda _, done, total: bar.update(number, completed=done, total=total)

    return shown()
