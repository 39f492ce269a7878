"""`trainability train`."""

import json
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainability.cli.common import changes, check_device, check_out, duration, fail, is_first
from trainability.data import DataError
from trainability.errors import ConfigError, FolderError
from trainability.experiments.recipe import read_recipe
from trainability.experiments.train import train
from trainability.training.folder import checkpoints, step_of
from trainability.training.history import History
from trainability.training.runtime import tune_allocator
from trainability.training.trainer import Training


def train_command(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default runs/ and the recipe's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that the folder holds.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting that wins over the recipe: optimizer.lr=0.01.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else there.")
    ] = False,
) -> None:
    """Train a recipe: one run, or one stack of runs over its seeds."""
    folder = out or Path("runs") / recipe.stem
    console = Console(stderr=True, quiet=not is_first())
    watch = _Watch(console)
    try:
        wanted = read_recipe(recipe, changes(settings or []))
        if wanted.sweep is not None:
            raise ConfigError("sweep: the recipe describes a sweep; run it with trainability sweep", code="is-a-sweep")
        check_device(wanted.engine.device)
        check_out(folder)
        environment = {"allocator": tune_allocator()}
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            outcome = train(
                wanted, folder, resume=resume, environment=environment, progress=lambda t: live.update(watch.table(t))
            )
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        fail(f"{error.filename} is in the way: {error.strerror}")
    except OSError as error:
        fail(
            f"the run stopped because {folder} cannot be written to: {error.strerror}; the last checkpoint is whole, "
            "so make room and go on with --resume"
        )
    except KeyboardInterrupt:
        newest = next(iter(checkpoints(folder)), None)
        kept = f"a checkpoint is in {folder}, of step {step_of(newest)}" if newest else "nothing had been trained"
        console.print(f"Interrupted; {kept}. Go on with --resume.", soft_wrap=True)
        raise typer.Exit(130) from None
    for name in outcome.damaged:
        console.print(f"The checkpoint {name} is damaged and was set aside.", markup=False)
    if resume:
        console.print(
            f"Resumed at step {outcome.resumed_at or 0}{'' if outcome.resumed_at else ', from the beginning'}."
        )
    if as_json and is_first():
        print(json.dumps(outcome.to_json()))
    console.print(results(outcome.histories))
    if all(history.status == "diverged" for history in outcome.histories):
        console.print("Every network diverged: try a lower learning rate, or a remedy.")
    console.print(f"Run: {folder}", soft_wrap=True)


class _Watch:
    """The table of a training as it goes, drawn a few times a second at most."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._first: int | None = None
        self._drawn = 0.0
        self._table = Table()

    def table(self, training: Training) -> Table:
        now = time.monotonic()
        if self._first is None:
            self._first = training.steps
        ended = training.steps % training.batches.per_epoch == 0
        if ended and not self._console.is_terminal:  # a log has no table that is drawn anew
            self._line(training)
        if now - self._drawn > 0.25:
            self._drawn = now
            done = training.steps - self._first
            left = (now - self._begin) / done * (training.total_steps - training.steps) if done else None
            self._table = results(training.histories)
            self._table.title = f"step {training.steps} of {training.total_steps}, {duration(left)} left"
            self._table.title_justify = "left"
        return self._table

    def _line(self, training: Training) -> None:
        """One line per epoch, with the middle of the members."""
        part = "validation" if len(training.data.val) else "test"
        found = [h.val if part == "validation" else h.test for h in training.histories]
        values = [accuracy for accuracy in found if accuracy is not None]
        middle = f"median {part} accuracy {median(values):.2f} %" if values else "every network diverged"
        self._console.print(f"step {training.steps} of {training.total_steps}: {middle}", highlight=False)


def results(histories: list[History]) -> Table:
    """One row per member."""
    grid = Table(box=None, pad_edge=False)
    for heading in ("seed", "lr", "status", "epoch", "val %", "test %", "loss", "last nats", "ms"):
        grid.add_column(heading, justify="right")
    for history in histories:
        result = history.result()
        keys = ("val_accuracy", "test_accuracy", "train_loss", "entropy_last", "step_ms")
        cells = zip(keys, (".2f", ".2f", ".3f", ".3g", ".1f"), strict=True)
        grid.add_row(
            str(history.seed),
            f"{history.lr:g}",
            history.status,
            str(history.epochs),
            *("" if result[key] is None else format(result[key], form) for key, form in cells),
        )
    return grid
