"""`trainability sweep`."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from optuna.study import Study
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainability.cli import tables
from trainability.cli.request import FREE, Request, environment_with
from trainability.cli.terminal import Terminal, duration, fail, interruptible, print_json
from trainability.errors import ConfigError, DataError, FolderError
from trainability.experiments.build import build_model, open_fabric
from trainability.experiments.environment import describe_environment
from trainability.experiments.program import Program
from trainability.experiments.recipe import Recipe
from trainability.experiments.sources import check_sources, keep_sources, sources
from trainability.experiments.study import STORAGE_ERRORS, Row, given_up, open_study, reason_of, rows, unreadable
from trainability.experiments.sweep import capacity, progress_of, work
from trainability.experiments.trial import try_out
from trainability.report.sweep import write_sweep_report
from trainability.tasks import Metric
from trainability.training.files import finite
from trainability.training.folder import hold
from trainability.training.places import check_links, clear, keep_recipe
from trainability.training.runtime import tune_allocator
from trainability.training.trainer import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def execute(asked: Request, *, workers: int, storage: str | None, worker: int | None) -> None:
    """Run a sweep, or a worker of one, in its folder."""
    console = Terminal()
    recipe, folder = asked.recipe, asked.folder
    assert recipe.sweep is not None
    place = storage or recipe.sweep.storage or f"sqlite:///{(folder / 'study.db').absolute()}"
    try:
        study, program, fabric = _open(asked, place, workers)
        watch = _Watch(study, recipe)
        interrupted, troubles = False, list[str]()
        with interruptible():
            try:
                with Live(console=console, refresh_per_second=4, transient=True) as live:
                    if worker is None and workers > 1:
                        environment = environment_with(asked.changes, TRAINABILITY_STORAGE=place)
                        troubles = _supervise(_commands(asked, workers), environment, folder, watch, live)
                    else:
                        show = (lambda _: None) if worker is not None else lambda t: live.update(watch.table(t))
                        work(recipe, study, program, fabric, progress=show, workers=workers)
            except KeyboardInterrupt:
                interrupted = True
            if worker is not None:
                return
            found, lost, left_out = rows(study, recipe), given_up(study, recipe), unreadable(study, recipe)
            report = write_sweep_report(recipe, found, lost, _json(recipe, found), folder, left_out)
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    except STORAGE_ERRORS as error:
        reason = reason_of(error, place)
        fail(f"the study was lost in mid-sweep: {reason}; finished trials are in it, so go on with --resume")
    except OSError as error:
        fail(f"{folder} cannot be written to: {error.strerror}; finished trials are in the study")
    if asked.as_json:
        print_json(_json(recipe, found))
    for trouble in troubles:
        console.print(trouble, markup=False)
    missing = watch.total - len(found) - len(lost) - len(left_out)
    _conclude(found, lost, left_out, missing, report, watch.metric, interrupted, console)


def _open(asked: Request, place: str, workers: int) -> tuple[Study, Program, "Fabric"]:
    """Open the study and the folder, once all is known to fit."""
    allocator = tune_allocator()
    fabric = open_fabric(asked.recipe)
    program = Program.of(asked.recipe)
    check_sources(asked.folder, sources(asked.recipe), asked.existing)
    try_out(asked.recipe, program, build_model(asked.recipe, program, asked.recipe.seeds[0])[0])
    capacity(asked.recipe, program, fabric.device, workers)
    if asked.existing == "overwrite" and asked.folder.exists():
        check_links(asked.folder)
        lock = hold(asked.folder)
        clear(asked.folder)
        lock.release()
    if place.startswith("sqlite"):
        asked.folder.mkdir(parents=True, exist_ok=True)
    study = open_study(asked.recipe, place)
    environment = {**describe_environment(), "allocator": allocator}
    keep_recipe(asked.folder, asked.recipe.resolved(), environment, FREE, asked.recipe.fixed_length())
    keep_sources(asked.folder, sources(asked.recipe))
    return study, program, fabric


def _conclude(
    found: Sequence[Row],
    lost: Sequence[dict[str, object]],
    left_out: Sequence[int],
    missing: int,
    report: Path,
    metric: Metric,
    interrupted: bool,
    console: Console,
) -> None:
    """Show what there is and what is missing; the exit code says whether anything is."""
    console.print(tables.trials(found, metric))
    for values in lost:
        console.print(f"Given up, since its workers died on every retry: {values}", markup=False)
    for number in left_out:
        console.print(f"Trial {number} is left out: its record is damaged, or of another version.")
    console.print(f"Report: {report}", soft_wrap=True)
    if interrupted:
        console.print("Interrupted; finished trials are kept. Go on with --resume.")
        raise click.exceptions.Exit(130)
    if missing:
        console.print(f"Missing trials: {missing}; go on with --resume.")
    if missing or lost or left_out:
        raise click.exceptions.Exit(1)


def _commands(asked: Request, workers: int) -> list[list[str]]:
    # -P: the folder that this runs in may be a stranger's, and Python would import modules from there.
    base = [sys.executable, "-P", "-m", "trainability", "sweep", *([str(asked.file)] if asked.file else [])]
    base += ["--out", str(asked.folder), "--resume", "--workers", str(workers)]
    return [[*base, "--worker", str(number)] for number in range(1, workers + 1)]


def _supervise(
    commands: Sequence[list[str]], environment: Mapping[str, str], folder: Path, watch: "_Watch", live: Live
) -> list[str]:
    """Start workers and watch the study until they end; return what is to be said of those that ended badly.

    What may hold a password goes by the environment: a command line is there for all to see.
    """
    threads = max(1, torch.get_num_threads() // len(commands))  # more threads than cores would stall each other
    environment = {**environment, "OMP_NUM_THREADS": str(threads)}
    logs = [folder / f"worker{number}.log" for number in range(1, len(commands) + 1)]
    processes = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("ab") as said:
            processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    try:
        while any(process.poll() is None for process in processes):
            live.update(watch.table(None))
            time.sleep(0.3)
    except KeyboardInterrupt:
        for process in processes:
            process.send_signal(signal.SIGINT)  # so that they give their trials back
        for process in processes:
            process.wait()
        raise
    troubles = []
    for number, (process, log) in enumerate(zip(processes, logs, strict=True), 1):
        if process.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1].removeprefix("trainability: ")
            troubles.append(f"Worker {number} ended with {process.returncode}: {last} ({log})")
    if len(troubles) == len(processes) and all(process.returncode == 2 for process in processes):
        raise ConfigError(troubles[0].partition(": ")[2].rpartition(" (")[0], code="workers-failed")
    return troubles


class _Watch:
    """The progress of the study, asked twice a second at most."""

    def __init__(self, study: Study, recipe: Recipe) -> None:
        self._study, self._recipe, self.metric = study, recipe, recipe.task.task().metric
        self._began, self._asked = time.monotonic(), 0.0
        first = progress_of(study, recipe, self._began, 0)
        self.total, self._before = first.total, first.finished
        self._title = ""

    def table(self, training: Training | None) -> Table:
        now = time.monotonic()
        if now - self._asked > 0.5:
            self._asked = now
            p = progress_of(self._study, self._recipe, self._began, self._before)
            best = "" if p.best is None else f", best validation {self.metric.name} {self.metric.show(p.best)}"
            self._title = (
                f"{p.finished} of {p.total} trials done, {p.running} running, {duration(p.seconds_left)} left{best}"
            )
        grid = Table(title=self._title, title_justify="left", box=None, pad_edge=False, show_header=False)
        if training is not None:
            grid.add_row(
                f"this stack: {len(training.histories)} networks, step {training.steps} of {training.total_steps}"
            )
        return grid


def _json(recipe: Recipe, found: Sequence[Row]) -> dict[str, object]:
    runs = [{"trial": row.number, **run} for row in found for run in row.runs]
    content: dict[str, object] = finite({"config": recipe.resolved(), "results": runs})
    return content
