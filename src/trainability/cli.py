"""The command line: parse, call, print."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainability.data import DataError, load
from trainability.experiments.compare import Comparison, compare
from trainability.experiments.config import ConfigError, configure
from trainability.experiments.words import narrate
from trainability.report.html import finite, table, write_report
from trainability.training.runtime import tune_allocator

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """See whether information gets through a deep network, and what makes it get through."""


@app.command("compare")
def _compare(
    data: Annotated[str | None, typer.Option(help="digits, mnist or fashion-mnist.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the official files.")] = None,
    hub: Annotated[bool | None, typer.Option("--hub", help="Take the data from the Hugging Face hub.")] = None,
    depth: Annotated[str | None, typer.Option(help="Hidden layers; a list such as 10,30 compares each.")] = None,
    width: Annotated[int | None, typer.Option(help="Neurons per hidden layer.")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate of Adam; a list compares each.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    seeds: Annotated[int | None, typer.Option(help="How many: 5 means seeds 0 to 4.")] = None,
    remedies: Annotated[str | None, typer.Option(help="From default, he, lbe, he+lbe, batchnorm, residual.")] = None,
    alpha: Annotated[float | None, typer.Option(help="LBE: initial target of every layer, in nats.")] = None,
    beta: Annotated[float | None, typer.Option(help="LBE: strength.")] = None,
    alpha_min: Annotated[float | None, typer.Option(help="LBE: floor of the targets.")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment", help="Random affine maps, brightness and contrast.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
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
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from None


def _check_out(out: Path) -> None:
    """Find out before training, not after it, whether the report can be written; leave nothing behind."""
    existing = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"out: {existing} is a file, not a folder")
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
    grid = Table(
        title=f"{done} of {len(comparison.records)} runs done, {_duration(comparison.seconds_left())} left",
        title_justify="left",
    )
    for heading in ("remedy", "depth", "lr", "seed"):
        grid.add_column(heading)
    for heading in ("epoch", "accuracy %", "loss", "nats: first", "lowest", "last", "ms/step"):
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
            record.remedy,
            str(record.depth),
            f"{record.lr:g}",
            str(record.seed),
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
        for heading in ("median %", "lowest to highest", "seeds", "nats in last layer", "ms/step"):
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
