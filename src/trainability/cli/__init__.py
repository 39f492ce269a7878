"""The command line: parse, call, print."""

import sys
from importlib.metadata import version
from typing import Any, get_args

import click

import trainability
from trainability.cli.arguments import ExperimentCommand, known_settings, once_option, options
from trainability.cli.request import prepare
from trainability.cli.terminal import printable
from trainability.experiments.reading import Command


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(f"trainability {trainability.__version__}, torch {version('torch')}")
        context.exit()


class _Count(click.ParamType[int]):
    """A whole number of at least 1."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number."""
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is not a whole number of at least 1", param, ctx)
        return number


class _Commands(click.Group):
    """Commands in the order in which they are written here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        return list(self.commands)


@click.group(cls=_Commands, no_args_is_help=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print versions.")
def app() -> None:
    """See whether information gets through a deep network, and what makes it get through.

    To begin, `trainability compare` trains a network of 30 layers in three ways, in about a minute, and writes a
    report. The help of each command lists every setting.
    """


@app.command(cls=ExperimentCommand)
@options
def train(**given: Any) -> None:
    """Train a recipe: one network for each of its seeds, all at once.

    \b
    trainability train --depth 10 --remedies he
    trainability train my.yaml optimizer.lr=0.01 --out runs/mine
    trainability train my.yaml optimizer.lr=0.01 --out runs/mine --resume
    """
    _experiment("train", given)


@app.command(cls=ExperimentCommand)
@options
def compare(**given: Any) -> None:
    """Train one network with several remedies side by side.

    The report says what rescued what. Settings take several values, with commas between them, and every remedy is
    trained with each.

    \b
    trainability compare --remedies default,he,tat+lbe
    trainability compare my.yaml model.depth=10,30 optimizer.lr=1e-3,3e-3
    """
    _experiment("compare", given)


@app.command(cls=ExperimentCommand)
@options
@click.option("--workers", type=_Count(), default=1, help="Processes on this machine; they share its threads.")
@once_option(
    "--storage",
    envvar="TRAINABILITY_STORAGE",
    help="Database of the study: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
)
@click.option("--worker", type=int, hidden=True)
def sweep(workers: int, storage: str | None, worker: int | None, **given: Any) -> None:
    """Train a grid of settings, or let TPE search them.

    The part `sweep` of the recipe says what varies. Started on more hosts with the same --storage, they share the
    work.

    \b
    trainability recipe sweep > my.yaml
    trainability sweep my.yaml --workers 4
    """
    asked = prepare("sweep", given, own=worker is None)
    if asked:
        from trainability.cli.sweep import execute

        execute(asked, workers=workers, storage=storage, worker=worker)


@app.command()
@click.argument("command", type=click.Choice(get_args(Command)), default="train", metavar="[train|compare|sweep]")
def recipe(command: Command) -> None:
    """Print a commented recipe to begin with.

    It has every setting at its default, and runs as it is.

    \b
    trainability recipe > my.yaml
    trainability train my.yaml
    """
    from trainability.experiments.template import template

    print(template(command), end="")


def _experiment(command: Command, given: dict[str, Any]) -> None:
    asked = prepare(command, given)
    if asked:
        from trainability.cli.experiment import execute

        execute(asked)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; a wrong call is one sentence on standard error and 2."""
    try:
        code = app.main(arguments, prog_name="trainability", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.NoSuchOption as error:
        name = error.option_name.lstrip("-").replace("-", "_")
        known = ["loss", "metrics", *known_settings()]
        full = next((setting for setting in known if name in (setting, setting.rpartition(".")[2])), None)
        hint = f"; write {full}=VALUE" if full else ""
        print(f"trainability: {printable(error.format_message().rstrip('.'))}{hint}", file=sys.stderr)
        return 2
    except click.ClickException as error:
        print(f"trainability: {printable(error.format_message())}", file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0
