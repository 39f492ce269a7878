"""`trainability train` and `trainability compare`: run the recipe, show what came of it."""

import click
from rich.live import Live

from trainability.cli import tables
from trainability.cli.request import Request
from trainability.cli.terminal import Terminal, fail, is_first, print_json
from trainability.errors import ConfigError, DataError, FolderError
from trainability.experiments.comparison import Comparison
from trainability.experiments.run import run
from trainability.report.text import summary
from trainability.training.runtime import tune_allocator


def execute(asked: Request) -> None:
    """Run an experiment in its folder; what is done is on the disk before anything is said of it."""
    console = Terminal()
    watch = tables.Watch(console)
    try:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            comparison = run(
                asked.recipe,
                asked.folder,
                existing=asked.existing,
                environment={"allocator": tune_allocator()},
                progress=lambda *state: live.update(watch(*state)),
            )
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    except OSError as error:
        fail(
            f"the run stopped because {error.filename or asked.folder} cannot be written to: {error.strerror}; what "
            "was kept before is whole, so make room and go on with --resume"
        )
    if asked.as_json and is_first():
        print_json(comparison.to_dict())
    _show(comparison, console)
    console.print(f"Report: {asked.folder / 'report.html'}", soft_wrap=True, markup=False)
    if comparison.interrupted:
        console.print("Interrupted; what was done is kept. Go on with --resume.")
        raise click.exceptions.Exit(130)


def _show(comparison: Comparison, console: Terminal) -> None:
    """The answer, the tables, and the words at the end."""
    if comparison.recipe.compare is None:
        console.print(tables.histories(comparison))
    for part in summary(comparison):
        console.print(part)
