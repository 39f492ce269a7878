"""`trainability sweep`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from optuna.study import Study
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainability.cli.common import changes, check_device, check_out, duration, fail
from trainability.data import DataError, Dataset
from trainability.errors import ConfigError, FolderError
from trainability.experiments.environment import describe_environment
from trainability.experiments.recipe import Recipe, read_recipe
from trainability.experiments.study import STORAGE_ERRORS, Row, given_up, open_study, reason_of, rows, unreadable
from trainability.experiments.sweep import capacity, progress_of, work
from trainability.experiments.train import load_data, open_fabric
from trainability.report.sweep import write_sweep_report
from trainability.training.files import finite
from trainability.training.folder import keep_recipe
from trainability.training.runtime import tune_allocator
from trainability.training.trainer import Training

_SETTINGS = "TRAINABILITY_SETTINGS"  # what was given to a worker's parent by --set
# Settings of the workers, which may change while a sweep goes on.
_FREE = (
    "engine",
    "loggers",
    "checkpoint_every",
    "data.dir",
    "sweep.stack",
    "sweep.storage",
    "sweep.retries",
    "sweep.heartbeat",
)


def sweep_command(
    recipe: Annotated[Path, typer.Argument(help="YAML file with a part named sweep.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep. Default runs/ and the recipe's name.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine; they share its threads.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="TRAINABILITY_STORAGE",
            help="Database of the study: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
        ),
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
        given = settings or []
        if worker is not None:
            given = json.loads(os.environ.get(_SETTINGS, "[]"))
        wanted = read_recipe(recipe, changes(given))
        if wanted.sweep is None:
            raise ConfigError(
                "sweep: the recipe has no such part; run it with trainability train, or add one", code="not-a-sweep"
            )
        check_device(wanted.engine.device)
        check_out(folder)
        allocator = tune_allocator()
        data = load_data(wanted)
        capacity(wanted, data, torch.device(wanted.engine.device), workers)
        place = storage or wanted.sweep.storage or f"sqlite:///{(folder / 'study.db').absolute()}"
        if place.startswith("sqlite"):
            folder.mkdir(parents=True, exist_ok=True)
        study = open_study(wanted, place)
        keep_recipe(folder, wanted.resolved(), {**describe_environment(), "allocator": allocator}, _FREE)
        watch = _Watch(study, wanted)
        interrupted, troubles = False, list[str]()
        try:
            if worker is not None or workers == 1:
                with Live(console=console, refresh_per_second=4, transient=True) as live:
                    _work(
                        wanted, study, data, workers, lambda t: live.update(watch.table(t)) if worker is None else None
                    )
            else:
                with Live(console=console, refresh_per_second=4, transient=True) as live:
                    secret = {"TRAINABILITY_STORAGE": place, _SETTINGS: json.dumps(given)}
                    troubles = _supervise(_commands(recipe, folder, workers), secret, folder, watch, live)
        except KeyboardInterrupt:
            interrupted = True
        if worker is not None:
            return
        found, lost, left_out = rows(study, wanted), given_up(study, wanted), unreadable(study, wanted)
        report = write_sweep_report(wanted, found, lost, _json(wanted, found), folder, left_out)
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    except STORAGE_ERRORS as error:
        reason = reason_of(error, place)
        fail(f"the study was lost in mid-sweep: {reason}; finished trials are in it, so run the same command again")
    except OSError as error:
        fail(f"{folder} cannot be written to: {error.strerror}; finished trials are in the study")
    for trouble in troubles:
        console.print(trouble, markup=False)
    if as_json:
        print(json.dumps(_json(wanted, found)))
    missing = watch.total - len(found) - len(lost) - len(left_out)
    _conclude(found, lost, left_out, missing, report, interrupted, console)


def _conclude(
    found: Sequence[Row],
    lost: Sequence[dict[str, object]],
    left_out: Sequence[int],
    missing: int,
    report: Path,
    interrupted: bool,
    console: Console,
) -> None:
    """Show what there is and what is missing; the exit code says whether anything is."""
    console.print(results(found))
    for values in lost:
        console.print(f"Given up, since its workers died on every retry: {values}", markup=False)
    for number in left_out:
        console.print(f"Trial {number} is left out: its record is damaged, or of another version.")
    console.print(f"Report: {report}", soft_wrap=True)
    if interrupted:
        console.print("Interrupted; finished trials are kept. Run the same command to go on.")
        raise typer.Exit(130)
    if missing:
        console.print(f"Missing trials: {missing}; run the same command to go on.")
    if missing or lost or left_out:
        raise typer.Exit(1)


def _work(
    recipe: Recipe, study: Study, data: Dataset, workers: int, progress: Callable[[Training | None], None]
) -> None:
    work(recipe, study, data, open_fabric(recipe), progress=progress, workers=workers)


def _commands(recipe: Path, folder: Path, workers: int) -> list[list[str]]:
    # -P: the folder that this runs in may be a stranger's, and Python would import modules from there.
    base = [sys.executable, "-P", "-m", "trainability", "sweep", str(recipe), "--out", str(folder)]
    base += ["--workers", str(workers)]
    return [[*base, "--worker", str(number)] for number in range(1, workers + 1)]


def _supervise(
    commands: Sequence[list[str]], secret: Mapping[str, str], folder: Path, watch: "_Watch", live: Live
) -> list[str]:
    """Start workers and watch the study until they end; return what is to be said of those that ended badly.

    What may hold a password goes by the environment: a command line is there for all to see.
    """
    threads = max(1, torch.get_num_threads() // len(commands))  # more threads than cores would stall each other
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **secret}
    logs = [folder / f"worker{number}.log" for number in range(1, len(commands) + 1)]
    processes = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("ab") as said:
            processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # or they would be left behind
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
    finally:
        signal.signal(signal.SIGTERM, before)
    troubles = []
    for number, (process, log) in enumerate(zip(processes, logs, strict=True), 1):
        if process.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1].removeprefix("trainability: ")
            troubles.append(f"Worker {number} ended with {process.returncode}: {last} ({log})")
    if len(troubles) == len(processes) and all(process.returncode == 2 for process in processes):
        raise ConfigError(troubles[0].partition(": ")[2].rpartition(" (")[0], code="workers-failed")
    return troubles


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
                f"this stack: {len(training.histories)} networks, step {training.steps} of {training.total_steps}"
            )
        return grid


def results(found: Sequence[Row], most: int = 10) -> Table:
    """The best trials by validation accuracy; the test accuracy is shown for the one that was chosen."""
    title = f"Finished trials: {len(found)}; the best by validation accuracy (mean over seeds)"
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
