"""The command line: parse, call, print."""

import sys
from typing import Annotated

import torch
import typer

import trainability
from trainability.cli.compare import compare_command
from trainability.cli.sweep import sweep_command
from trainability.cli.train import train_command

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"trainability {trainability.__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions.")
    ] = False,
) -> None:
    """See whether information gets through a deep network, and what makes it get through."""


app.command("compare")(compare_command)
app.command("train")(train_command)
app.command("sweep")(sweep_command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; a wrong call is one sentence on standard error and 2."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="trainability", standalone_mode=False)
    except typer.Abort:
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own errors have it, whichever parser typer brings
            raise
        message = str(error.format_message()).partition(", unable")[0]
        if message:
            print(f"trainability: {message}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0
