"""`trainability sweep`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from optuna.study import Study
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainability.cli.common import changes, check_device, check_out, duration, fail
from trainability.data import DataError, load
from trainability.experiments.environment import describe_environment
from trainability.experiments.recipe import Recipe, read_recipe
from trainability.experiments.sweep import Row, given_up, open_study, progress_of, rows, work
from trainability.experiments.train import open_fabric
from trainability.experiments.validate import ConfigError
from trainability.files import finite
from trainability.report.sweep import write_sweep_report
from trainability.training.engine import Training
from trainability.training.folder import FolderError, keep_recipe
from trainability.training.runtime import tune_allocator


def sweep_command(
    recipe: Annotated[Path, typer.Argument(help="YAML file with a part named sweep.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep. Default runs/ and the recipe's name.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine; they share its threads.")] = 1,
    storage: Annotated[
        str | None, typer.Option(help="Database of the study: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting that wins over the recipe: epochs=5.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else there.")
    ] = False,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a grid of settings, or let TPE search them; run it again, here or on more hosts, to go on."""
    folder = out or Path("runs") / recipe.stem
    console = Console(stderr=True)
    try:
        wanted = read_recipe(recipe, changes(settings or []))
        if wanted.sweep is None:
            raise ConfigError("sweep: the recipe has no such part; run it with trainability train, or add one")
        check_device(wanted.engine.device)
        check_out(folder)
        allocator = tune_allocator()
        keep_recipe(folder, wanted.resolved(), {**describe_environment(), "allocator": allocator})
        place = storage or wanted.sweep.storage or f"sqlite:///{(folder / 'study.db').absolute()}"
        study = open_study(wanted, place, worker=worker or 0)
        watch = _Watch(study, wanted)
        interrupted = False
        try:
            if worker is not None or workers == 1:
                with Live(console=console, refresh_per_second=4, transient=True) as live:
                    _work(wanted, study, None if worker is not None else lambda t: live.update(watch.table(t)))
            else:
                with Live(console=console, refresh_per_second=4, transient=True) as live:
                    _supervise(_commands(recipe, folder, place, settings or [], workers), folder, watch, live)
        except KeyboardInterrupt:
            interrupted = True
        if worker is not None:
            return
        found = rows(study)
        report = _write(wanted, study, found, folder)
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{folder} cannot be written to: {error.strerror}; finished trials are in the study")
    if as_json:
        print(json.dumps(_json(wanted, found)))
    console.print(results(found))
    for values in given_up(study, wanted):
        console.print(f"Given up after {wanted.sweep.retries} retries: {values}", markup=False)
    console.print(f"Report: {report}", soft_wrap=True)
    if interrupted:
        console.print("Interrupted; finished trials are kept. Run the same command to go on.")
        raise typer.Exit(130)
    if len(found) < watch.total:
        console.print(f"{watch.total - len(found)} trials are missing; run the same command to try them again.")
        raise typer.Exit(1)


def _work(recipe: Recipe, study: Study, progress: object) -> None:
    data = load(recipe.data.name, recipe.data.dir, hub=recipe.data.hub)
    if recipe.batch_size > len(data.train):
        raise ConfigError(f"batch_size: {recipe.batch_size} is more than the {len(data.train)} training samples")
    work(recipe, study, data, open_fabric(recipe), progress=progress if callable(progress) else lambda _: None)


def _commands(recipe: Path, folder: Path, storage: str, settings: Sequence[str], workers: int) -> list[list[str]]:
    base = [sys.executable, "-m", "trainability", "sweep", str(recipe), "--out", str(folder), "--storage", storage]
    base += [part for setting in settings for part in ("--set", setting)]
    return [[*base, "--worker", str(number)] for number in range(1, workers + 1)]


def _supervise(commands: Sequence[list[str]], folder: Path, watch: "_Watch", live: Live) -> None:
    """Start workers and watch the study until they end."""
    threads = max(1, torch.get_num_threads() // len(commands))  # more threads than cores would stall each other
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes = []
    for number, command in enumerate(commands, 1):
        with (folder / f"worker{number}.log").open("ab") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        while any(process.poll() is None for process in processes):
            live.update(watch.table(None))
            time.sleep(0.3)
    finally:
        for process in processes:
            process.terminate()
    if refused := [number for number, process in enumerate(processes, 1) if process.returncode == 2]:
        said = (folder / f"worker{refused[0]}.log").read_text(errors="replace").strip()
        raise ConfigError(said.splitlines()[-1].removeprefix("trainability: ") if said else "a worker refused to start")


class _Watch:
    """How far the study is, asked twice a second at most."""

    def __init__(self, study: Study, recipe: Recipe) -> None:
        self._study, self._recipe = study, recipe
        self._began, self._asked = time.monotonic(), 0.0
        first = progress_of(study, recipe, self._began, 0)
        self.total, self._before = first.total, first.finished
        self._title = ""

    def table(self, training: Training | None) -> Table:
        now = time.monotonic()
        if now - self._asked > 0.5:
            self._asked = now
            p = progress_of(self._study, self._recipe, self._began, self._before)
            best = "" if p.best is None else f", best validation accuracy {p.best:.2f} %"
            self._title = (
                f"{p.finished} of {p.total} trials done, {p.running} running, {duration(p.seconds_left)} left{best}"
            )
        grid = Table(title=self._title, title_justify="left", box=None, pad_edge=False, show_header=False)
        if training is not None:
            grid.add_row(
                f"this stack: {len(training.records)} networks, step {training.steps} of {training.total_steps}"
            )
        return grid


def results(found: Sequence[Row], most: int = 10) -> Table:
    """The best trials by validation accuracy; the test accuracy is shown for the one that was chosen."""
    title = f"{len(found)} trials, best by validation accuracy (mean over seeds)"
    grid = Table(title=title, title_justify="left")
    names = list(found[0].params) if found else []
    for name in ("trial", *names, "val %", "test %"):
        grid.add_column(name, justify="right")
    for place, row in enumerate(found[:most]):
        values = [f"{row.params[n]:g}" if isinstance(row.params[n], float) else str(row.params[n]) for n in names]
        grid.add_row(str(row.number), *values, f"{row.val:.2f}", f"{row.test:.2f}" if place == 0 else "")
    return grid


def _json(recipe: Recipe, found: Sequence[Row]) -> dict[str, object]:
    runs = [{"trial": row.number, **run} for row in found for run in row.runs]
    content: dict[str, object] = finite({"config": recipe.resolved(), "results": runs})
    return content


def _write(recipe: Recipe, study: Study, found: Sequence[Row], folder: Path) -> Path:
    return write_sweep_report(recipe, found, given_up(study, recipe), _json(recipe, found), folder)
