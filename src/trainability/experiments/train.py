"""`train`: one recipe, as one run or one stack of runs over its seeds."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainability.data import Dataset, load
from trainability.data.augment import usual_augmentation
from trainability.errors import ConfigError, FolderError, TrainabilityError, UnsupportedModelError
from trainability.experiments.environment import describe_environment
from trainability.experiments.recipe import Recipe
from trainability.introspect.select import select
from trainability.models import cnn, fnn, resnet
from trainability.remedies import Init, Remedy, apply_
from trainability.stack.memory import bytes_per_member, free_bytes, least_bytes, members_that_fit
from trainability.tasks import task
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.devices import fabric_on, launched
from trainability.training.files import finite
from trainability.training.folder import RunFolder
from trainability.training.history import History
from trainability.training.optimizers import Schedule
from trainability.training.run import naming_the_dead, run
from trainability.training.trainer import Training
from trainability.training.writer import FolderWriter, Writer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class Outcome:
    """Result of `train`: a history per member, and the step and checkpoints that it went on from."""

    recipe: Recipe
    histories: list[History]
    resumed_at: int | None = None
    damaged: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the object of ``--json``: ``config`` and ``results``, one flat object per run."""
        config: dict[str, Any] = finite(self.recipe.resolved())
        return {"config": config, "results": [finite(history.result()) for history in self.histories]}


def build_model(recipe: Recipe, data: Dataset, seed: int) -> nn.Module:
    """The network of a recipe with the initial weights of a seed."""
    torch.manual_seed(seed)
    model = architecture(recipe, data)
    inputs = data.inputs(data.train.images[:256])
    remedies: list[Remedy] = [] if recipe.init == "default" else [Init(recipe.init)]
    remedies += [recipe.remedy.remedy()] if recipe.remedy else []
    for remedy in remedies:
        try:
            apply_(model, remedy, inputs=inputs)
        except (TrainabilityError, ValueError) as error:
            message = f"{recipe.remedy.name if recipe.remedy else recipe.init}: {error}"
            raise ConfigError(message, code=getattr(error, "code", None)) from error
    return model.double() if recipe.engine.precision == "64-true" else model


def architecture(recipe: Recipe, data: Dataset) -> nn.Module:
    """The network of a recipe with PyTorch's default weights."""
    shape = recipe.model
    channels, height, width = data.shape
    options: dict[str, Any] = {"nonlinearity": shape.nonlinearity}
    if shape.name == "cnn":
        plain = (channels, height, width)
        options |= {"batchnorm": shape.batchnorm, "strides": shape.strides}
        return cnn(plain, shape.depth, shape.width, data.classes, **options)
    if shape.name == "resnet":
        options |= {
            "in_channels": channels,
            "width": shape.width,
            "shortcuts": shape.residual,
            "norm": shape.batchnorm or shape.unit != "baseline",
            "unit": shape.unit,
            "keep": shape.keep,
            "scale": shape.scale,
            "convolutions": shape.convolutions,
        }
        return resnet(shape.depth, data.classes, **options)
    options |= {"batchnorm": shape.batchnorm, "residual": shape.residual}
    return fnn(channels * height * width, shape.depth, shape.width, data.classes, **options)


def build_training(
    recipes: Sequence[Recipe],
    data: Dataset,
    fabric: "Fabric",
    tell: Callable[..., None] = lambda event, **values: None,
) -> Training:
    """One stack of every seed of every recipe; the recipes are of one architecture, data set and schedule."""
    first = recipes[0]
    members = [
        Member(
            seed,
            recipe.optimizer.lr,
            recipe.optimizer.weight_decay,
            Strength(recipe.lbe.alpha, recipe.lbe.beta, recipe.lbe.alpha_min) if recipe.lbe else None,
        )
        for recipe in recipes
        for seed in recipe.seeds
    ]
    models = [build_model(recipe, data, seed) for recipe in recipes for seed in recipe.seeds]
    parts = [first.remedy.name if first.remedy else first.init, *(["lbe"] if first.lbe else [])]
    label = "lbe" if parts == ["default", "lbe"] else "+".join(parts)
    plan = TrainingConfig(
        first.epochs,
        first.batch_size,
        optimizer=first.optimizer.name,
        options=first.optimizer.options,
        schedule=Schedule(**first.schedule.model_dump()),
        augmentation=usual_augmentation(data.name) if first.data.augment else None,
        task=task(first.task),
        convention=first.lbe.convention if first.lbe else "paper",
        neurons=first.lbe.neurons if first.lbe else "position",
        probes=first.probes,
        members=first.engine.members,
        compile=first.engine.compile,
        cuda_graph=first.engine.cuda_graph,
    )
    histories = [History(label, first.model.depth, member.lr, member.seed) for member in members]
    return Training(models, members, histories, data, plan, fabric, tell)


def check_fits(recipe: Recipe, data: Dataset, device: torch.device) -> None:
    """Raise ConfigError where a stack of all seeds would not fit in memory, saying how many would."""
    count, per_member = len(recipe.seeds), member_bytes(recipe, data, device)
    if device.type == "cpu":  # the processes of a host share its memory
        per_member *= recipe.engine.devices
    fit = members_that_fit(per_member, device)
    if count <= fit:
        return
    each = f"{recipe.model.depth} layers of {recipe.model.width}"
    needs = f"needs about {count * per_member / 1e9:.1f} GB and {free_bytes(device) / 1e9:.1f} GB are free"
    if count > 1:
        raise ConfigError(
            f"a stack of {count} networks of {each} {needs}: {fit} would fit; take fewer seeds at once, or smaller "
            "batches",
            code="memory",
        )
    shared = "more devices" if recipe.engine.strategy == "fsdp" else "engine: {strategy: fsdp} over several devices"
    raise ConfigError(
        f"a network of {each} {needs}: it would fit with smaller batches or layers, or {shared}", code="memory"
    )


def member_bytes(recipe: Recipe, data: Dataset, device: torch.device) -> int:
    """Memory that one member of a recipe's stack takes in a process, measured on a pass where its weights fit.

    Raises:
        ConfigError: a batch larger than the training set.
    """
    if recipe.batch_size > len(data.train):
        raise ConfigError(
            f"batch_size: {recipe.batch_size} is more than the {len(data.train)} training samples",
            code="batch-too-large",
        )
    processes = recipe.engine.devices * recipe.engine.nodes
    shares = processes if recipe.engine.strategy == "fsdp" else 1
    with torch.device("meta"):
        least = least_bytes(architecture(recipe, data)) // shares
    if least > free_bytes(device):
        return least
    model = build_model(recipe, data, 0)
    inputs = data.inputs(data.train.images[: recipe.batch_size // processes])
    inputs = inputs.to(next(model.parameters()).dtype)
    places = select(model, inputs=inputs[:2]).places if recipe.lbe else ()
    return bytes_per_member(model, inputs, places, shares=shares)


def load_data(recipe: Recipe) -> Dataset:
    """The data set of a recipe."""
    data = recipe.data
    return load(data.name, data.dir, hub=data.hub, pln=data.pln, held_out=data.held_out, images=data.images())


def open_fabric(recipe: Recipe) -> "Fabric":
    """Lightning Fabric as the recipe's engine wants it, with all processes started."""
    engine = recipe.engine
    if engine.threads:
        if engine.threads > (cores := os.cpu_count() or engine.threads):
            raise ConfigError(
                f"engine.threads: {engine.threads} is more than the {cores} cores of this machine", code="out-of-range"
            )
        torch.set_num_threads(engine.threads)
    if engine.nodes > 1 and not launched():
        raise ConfigError(
            f"engine.nodes: {engine.nodes} hosts would wait for one another; start the command on each by torchrun or "
            "SLURM, or with MASTER_ADDR, MASTER_PORT and NODE_RANK set",
            code="no-launcher",
        )
    if engine.tf32:
        torch.set_float32_matmul_precision("high")
    fabric = fabric_on(
        engine.device,
        devices=engine.devices,
        nodes=engine.nodes,
        strategy=engine.strategy,
        precision=engine.precision,
    )
    fabric.launch()
    return fabric


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    environment: dict[str, Any] | None = None,
    progress: Callable[[Training], None] = lambda _: None,
) -> Outcome:
    """Train a recipe, keeping a record in a folder; interrupted or killed, it can be resumed to the same weights.

    Several processes share each batch. The first of them writes the folder.

    Raises:
        ConfigError, FolderError, DataError: before anything is trained.
        OSError: the folder cannot be written to any more; the last checkpoint stays.
        KeyboardInterrupt: passed on after a checkpoint.
    """
    fabric = open_fabric(recipe)
    data = load_data(recipe)
    check_fits(recipe, data, fabric.device)
    described = {**describe_environment(), **(environment or {}), "data": data.describe()}
    with naming_the_dead(), open_writer(fabric, out, recipe, described, resume=resume) as writer:
        training = build_training([recipe], data, fabric, writer.note)
        try:
            resumed_at = run(
                training, writer, resume=resume, checkpoint_every=recipe.checkpoint_every, progress=progress
            )
        except UnsupportedModelError as error:
            raise ConfigError(str(error), code=error.code) from error
    return Outcome(recipe, training.histories, resumed_at, list(writer.damaged))


@contextmanager
def open_writer(
    fabric: "Fabric", out: Path, recipe: Recipe, environment: dict[str, Any], *, resume: bool
) -> Iterator[Writer]:
    """The writer of this process: that of the run's folder in the first, and one that writes nothing in the others.

    Raises:
        FolderError: the folder cannot be used; in every process, or the others would wait.
    """
    folder, refusal = None, None
    if fabric.is_global_zero:
        try:
            folder = RunFolder(out, recipe.resolved(), environment, resume=resume)
        except FolderError as error:
            refusal = str(error), error.code
        except OSError as error:
            refusal = f"{out} cannot be written to: {error.strerror}", "out-not-writable"
    if refusal := fabric.broadcast(refusal):
        message, code = refusal
        raise FolderError(message, code=code)
    if folder is None:
        yield Writer()
        return
    with folder:
        yield FolderWriter(folder, recipe.resolved(), names=recipe.loggers, seeds=recipe.seeds)
