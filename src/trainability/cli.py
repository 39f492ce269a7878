"""The command line: parse, call, print."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

import trainability
from trainability.data import DataError, load
from trainability.experiments.compare import Comparison, compare
from trainability.experiments.config import ConfigError, configure
from trainability.experiments.words import narrate
from trainability.report.html import finite, table, write_report
from trainability.training.runtime import tune_allocator

_REPORT_BYTES = 20 * 10**6

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


@app.command("compare")
def _compare(
    data: Annotated[str | None, typer.Option(help="digits, mnist or fashion-mnist. Default digits.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the official files.")] = None,
    hub: Annotated[bool | None, typer.Option("--hub", help="Take the data from the Hugging Face hub.")] = None,
    depth: Annotated[str | None, typer.Option(help="Hidden layers; a list, 10,30, compares each. Default 30.")] = None,
    width: Annotated[int | None, typer.Option(help="Neurons per hidden layer. Default 64.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step. Default 128.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate of Adam; a list compares each. Default 1e-3.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set. Default 100.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many: 5 means seeds 0 to 4. Default 3.")] = None,
    remedies: Annotated[
        str | None, typer.Option(help="A list. Default default,he,lbe; more: he+lbe, batchnorm, residual.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="LBE: initial target, in nats. Default 0.5.")] = None,
    beta: Annotated[float | None, typer.Option(help="LBE: strength. Default 0.2.")] = None,
    alpha_min: Annotated[float | None, typer.Option(help="LBE: floor of the targets. Default 0.2.")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment", help="Random affine maps, brightness and contrast.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default cpu.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of these settings; flags win over it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and results.json.")] = Path("runs/compare"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else there.")
    ] = False,
) -> None:
    """Train one network with several remedies side by side, and report what rescued what."""
    given: dict[str, Any] = {
        "data": data,
        "data_dir": data_dir,
        "hub": hub,
        "depth": _list(depth),
        "width": width,
        "batch_size": batch_size,
        "lr": _list(lr),
        "epochs": epochs,
        "seeds": seeds,
        "remedies": _list(remedies),
        "alpha": alpha,
        "beta": beta,
        "alpha_min": alpha_min,
        "augment": augment,
        "device": device,
    }
    try:
        settings = configure({key: value for key, value in given.items() if value is not None}, config)
        _check_device(settings.device)
        dataset = load(settings.data, settings.data_dir, hub=settings.hub)
        if settings.batch_size > len(dataset.train):
            raise ConfigError(
                f"batch_size: {settings.batch_size} is more than the {len(dataset.train)} training samples"
            )
        _check_out(out)
    except (ConfigError, DataError) as error:
        _fail(str(error))
    console = Console(stderr=True)
    environment = {"allocator": tune_allocator()}
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        comparison = compare(settings, dataset, environment=environment, progress=lambda c: live.update(_progress(c)))
    if as_json:
        print(json.dumps(finite(comparison.to_json())))
    try:
        report = write_report(comparison, out)
    except OSError as error:
        _show(comparison, console)
        _fail(f"the report could not be written to {out}: {error.strerror}")
    _show(comparison, console)
    console.print(f"Report: {report}", soft_wrap=True)
    if comparison.interrupted:
        raise typer.Exit(130)


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _check_device(name: str) -> None:
    try:
        kind = torch.device(name).type
        if kind not in ("cpu", "cuda", "mps"):
            raise RuntimeError("choose cpu, cuda or mps")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from None


def _check_out(out: Path) -> None:
    """Find out before training, not after it, whether the report can be written; leave nothing behind."""
    try:
        existing = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be used: {error.strerror}") from None
    if not existing.is_dir():
        raise ConfigError(f"out: {existing} is a file, not a folder")
    if shutil.disk_usage(existing).free < _REPORT_BYTES:
        raise ConfigError(
            f"out: no space is left on the disk of {existing}; a report takes {_REPORT_BYTES // 10**6} MB"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {existing} cannot be written to")


def _fail(sentence: str) -> NoReturn:
    print(f"trainability: {sentence}", file=sys.stderr)
    raise typer.Exit(2)


def _duration(seconds: float | None) -> str:
    return "…" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _progress(comparison: Comparison) -> Table:
    """The live table: the runs in training, and how many are done."""
    done = sum(record.status in ("done", "diverged") for record in comparison.records)
    title = f"{done} of {len(comparison.records)} runs done, {_duration(comparison.seconds_left())} left"
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    config = comparison.config
    labels = ["remedy", *(["depth"] if len(config.depth) > 1 else []), *(["lr"] if len(config.lr) > 1 else []), "seed"]
    for heading in labels:
        grid.add_column(heading, no_wrap=True)
    for heading in ("epoch", "acc. %", "loss", "first", "lowest", "last nats", "ms"):
        grid.add_column(heading, justify="right")
    started = [record for record in comparison.records if record.status != "waiting"]
    for record in started[-max(12, len(comparison.config.remedies)) :]:
        result = record.result()
        cells = (
            result["test_accuracy"],
            result["train_loss"],
            *(result[f"entropy_{where}"] for where in ("first", "lowest", "last")),
            result["step_ms"],
        )
        formats = (".2f", ".3f", ".2f", ".3f", ".3f", ".1f")
        grid.add_row(
            *(f"{getattr(record, label):g}" if label == "lr" else str(getattr(record, label)) for label in labels),
            f"{record.epochs}/{comparison.config.epochs}",
            *("" if cell is None else format(cell, form) for cell, form in zip(cells, formats, strict=True)),
        )
    return grid


def _show(comparison: Comparison, console: Console) -> None:
    """The table and the words at the end."""
    if comparison.interrupted:
        console.print("Interrupted; this is what was done by then.")
    words = dict(narrate(comparison))
    for depth, lr, arms in comparison.cells():
        title = f"{depth} layers, learning rate {lr:g}"
        if not arms:
            continue
        grid = Table(title=f"{comparison.config.data}: {title}", title_justify="left")
        grid.add_column("remedy")
        for heading in ("median %", "lowest to highest", "seeds", "nats in last layer", "ms per step"):
            grid.add_column(heading, justify="right")
        for row in table(arms):
            grid.add_row(
                row["remedy"],
                f"{row['median']:.2f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
                str(len(row["seeds"])),
                f"{row['entropy']:.2g} → {row['entropy_end']:.2g}",
                f"{row['step_ms']:.1f}",
            )
        console.print(grid)
        for sentence in words[title]:
            console.print(f"- {sentence}", highlight=False, markup=False)


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
