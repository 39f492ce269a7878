"""`trainability compare`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainability.cli.common import check_device, check_out, duration, fail, split
from trainability.data import DataError, load
from trainability.errors import ConfigError, FolderError
from trainability.experiments.arms import PARTS
from trainability.experiments.compare import Comparison, compare
from trainability.experiments.config import configure
from trainability.report.narrative import narrate
from trainability.report.page import table, write_report
from trainability.training.files import finite
from trainability.training.runtime import tune_allocator

_FEW = 4  # remedies, of which everything is said in the terminal; of more the report says it


def compare_command(
    data: Annotated[
        str | None,
        typer.Option(help="digits, mnist, fashion-mnist, cifar10, cifar100, or folder, of images. Default digits."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the official files.")] = None,
    hub: Annotated[bool | None, typer.Option("--hub", help="Take the data from the Hugging Face hub.")] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            help="Training samples held out for validation. Default 10,000; 360 of digits, a tenth of a folder."
        ),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Of a folder: pixels of each side. Default 64.")] = None,
    classes: Annotated[int | None, typer.Option(help="Of a folder: the first so many classes. Default all.")] = None,
    per_class: Annotated[int | None, typer.Option(help="Of a folder: training images per class. Default all.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="fnn, fully connected; cnn, convolutional; resnet, of the CIFAR family. Default fnn."),
    ] = None,
    nonlinearity: Annotated[str | None, typer.Option(help="relu, tanh, gelu, ... Default relu.")] = None,
    depth: Annotated[str | None, typer.Option(help="Hidden layers; a list, 10,30, compares each. Default 30.")] = None,
    width: Annotated[int | None, typer.Option(help="Neurons or channels per hidden layer. Default 64.")] = None,
    strides: Annotated[int | None, typer.Option(help="Convolutions of cnn that halve the image. Default 0.")] = None,
    convolutions: Annotated[int | None, typer.Option(help="Of resnet: in each block, 2 or 3. Default 2.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step. Default 128.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate of Adam; a list compares each. Default 1e-3.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set. Default 100.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many: 5 means seeds 0 to 4. Default 3.")] = None,
    remedies: Annotated[
        str | None,
        typer.Option(help=f"A list of {', '.join(PARTS)}, or of these joined, tat+lbe. Default default,he,lbe."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="LBE: initial target, in nats. Default 0.5.")] = None,
    beta: Annotated[float | None, typer.Option(help="LBE: strength. Default 0.2.")] = None,
    alpha_min: Annotated[float | None, typer.Option(help="LBE: floor of the targets. Default 0.2.")] = None,
    convention: Annotated[
        str | None, typer.Option(help="LBE: the constant of the entropy, paper or published-code. Default paper.")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="TAT: largest C(0) of leaky ReLUs. Default 0.9.")] = None,
    tau: Annotated[float | None, typer.Option(help="TAT: largest C''(1) of smooth activations. Default 0.3.")] = None,
    keep: Annotated[float | None, typer.Option(help="IC: probability of keeping an entry. Default 0.95.")] = None,
    zeta: Annotated[float | None, typer.Option(help="DKS: largest C'(1). Default 1.5.")] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment", help="Affine maps of digits; crops and mirroring of photographs."),
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
        "held_out": held_out,
        "image_size": image_size,
        "classes": classes,
        "per_class": per_class,
        "model": model,
        "nonlinearity": nonlinearity,
        "depth": split(depth),
        "width": width,
        "strides": strides,
        "convolutions": convolutions,
        "batch_size": batch_size,
        "lr": split(lr),
        "epochs": epochs,
        "seeds": seeds,
        "remedies": split(remedies),
        "alpha": alpha,
        "beta": beta,
        "alpha_min": alpha_min,
        "convention": convention,
        "eta": eta,
        "tau": tau,
        "keep": keep,
        "zeta": zeta,
        "augment": augment,
        "device": device,
    }
    try:
        settings = configure({key: value for key, value in given.items() if value is not None}, config)
        check_device(settings.device)
        dataset = load(
            settings.data, settings.data_dir, hub=settings.hub, held_out=settings.held_out, images=settings.images()
        )
        if settings.batch_size > len(dataset.train):
            raise ConfigError(
                f"batch_size: {settings.batch_size} is more than the {len(dataset.train)} training samples",
                code="batch-too-large",
            )
        check_out(out)
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    console = Console(stderr=True)
    environment = {"allocator": tune_allocator()}
    try:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            comparison = compare(
                settings, dataset, environment=environment, progress=lambda c: live.update(_progress(c))
            )
    except ConfigError as error:
        fail(str(error))
    if as_json:
        print(json.dumps(finite(comparison.to_json())))
    try:
        report = write_report(comparison, out)
    except OSError as error:
        _show(comparison, console)
        fail(f"the report could not be written to {out}: {error.strerror}")
    _show(comparison, console)
    console.print(f"Report: {report}", soft_wrap=True)
    if comparison.interrupted:
        raise typer.Exit(130)


def _progress(comparison: Comparison) -> Table:
    """The live table: the runs in training, and how many are done."""
    done = sum(history.status in ("done", "diverged") for history in comparison.histories)
    title = f"{done} of {len(comparison.histories)} runs done, {duration(comparison.seconds_left())} left"
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    config = comparison.config
    labels = ["remedy", *(["depth"] if len(config.depth) > 1 else []), *(["lr"] if len(config.lr) > 1 else []), "seed"]
    for heading in labels:
        grid.add_column(heading, no_wrap=True)
    for heading in ("epoch", "acc. %", "loss", "first", "lowest", "last nats", "ms"):
        grid.add_column(heading, justify="right")
    started = [history for history in comparison.histories if history.status != "waiting"]
    for history in started[-max(12, len(comparison.config.remedies)) :]:
        result = history.result()
        cells = (
            result["test_accuracy"],
            result["train_loss"],
            *(result[f"entropy_{where}"] for where in ("first", "lowest", "last")),
            result["step_ms"],
        )
        formats = (".2f", ".3f", ".2f", ".3f", ".3f", ".1f")
        grid.add_row(
            *(f"{getattr(history, label):g}" if label == "lr" else str(getattr(history, label)) for label in labels),
            f"{history.epochs}/{comparison.config.epochs}",
            *("" if cell is None else format(cell, form) for cell, form in zip(cells, formats, strict=True)),
        )
    return grid


def _show(comparison: Comparison, console: Console) -> None:
    """The table and the words at the end."""
    if comparison.interrupted:
        console.print("Interrupted; this is what was done by then.")
    brief = len(comparison.config.remedies) > _FEW
    words = dict(narrate(comparison, brief=brief))
    for depth, lr, arms in comparison.cells():
        title = f"{depth} layers, learning rate {lr:g}"
        if not arms:
            continue
        grid = Table(title=f"{comparison.config.data}: {title}", title_justify="left")
        grid.add_column("remedy", no_wrap=True, min_width=max(map(len, comparison.config.remedies)))
        for heading in ("test %, median", "lowest to highest", "seeds", "nats in last layer", "ms per step"):
            grid.add_column(heading, justify="right")
        for row in table(arms, comparison.task.metric):
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
