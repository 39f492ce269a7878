"""From a recipe to what trains it: networks with their remedies, stacks, devices."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainability._references import naming_the_place
from trainability.data.augment import usual_augmentation
from trainability.data.streamed import LoaderPart
from trainability.errors import ConfigError, TrainabilityError
from trainability.experiments.axes import STACKABLE
from trainability.experiments.program import Program
from trainability.experiments.recipe import Recipe
from trainability.introspect.hooks import Place
from trainability.introspect.outputs import first_of
from trainability.introspect.select import select
from trainability.models.own import OwnModel
from trainability.remedies.apply import Report, apply_
from trainability.stack.memory import bytes_per_member, free_bytes, least_bytes, members_that_fit
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.devices import fabric_on, launched
from trainability.training.history import History
from trainability.training.schedules import Schedule
from trainability.training.trainer import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def open_fabric(recipe: Recipe) -> "Fabric":
    """Lightning Fabric as the recipe's engine wants it, with all processes started.

    Raises:
        ConfigError: more threads than cores, several hosts without a launcher, or a device that is not there.
    """
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
    try:
        torch.empty(0, device=engine.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"engine.device: {engine.device} is not there ({reason}); take cpu", code="device") from None
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


def build_model(recipe: Recipe, program: Program, seed: int) -> tuple[nn.Module, list[Report]]:
    """The network of a recipe with the initial weights of a seed, and what each remedy has changed in it.

    Raises:
        ConfigError: a remedy that the network cannot take.
    """
    torch.manual_seed(seed)
    reports = []
    try:
        model = program.network(recipe)
        for remedy in recipe.remedies.applied(recipe.model.name):
            with naming_the_place():
                reports.append(apply_(model, remedy, inputs=program.samples(model, 256)[0]))
    except ConfigError:
        raise
    except TrainabilityError as error:
        at = f" at depth {recipe.model.depth}" if hasattr(recipe.model, "depth") else ""
        message = f"{recipe.model.name}{at} cannot be built with {recipe.remedies.name}: {error}"
        raise ConfigError(message, code=error.code) from error
    return model.double() if recipe.engine.precision == "64-true" else model, reports


def build_training(
    recipes: Sequence[Recipe],
    program: Program,
    fabric: "Fabric",
    tell: Callable[..., None] = lambda event, **values: None,
) -> tuple[Training, list[Report]]:
    """One stack of every seed of every recipe, which differ in `STACKABLE` settings only.

    The reports are those of the first network; what remedies do to the others differs by the random numbers.
    """
    first = recipes[0]
    members, histories, models = [], [], []
    reports: list[Report] = []
    for recipe in recipes:
        loss: Any = recipe.remedies.loss
        for seed in recipe.seeds:
            strength = Strength(loss.alpha, loss.beta, loss.alpha_min) if loss else None
            members.append(Member(seed, recipe.optimizer.lr, recipe.optimizer.weight_decay, strength))
            histories.append(
                History(recipe.remedies.name, getattr(recipe.model, "depth", 0), recipe.optimizer.lr, seed)
            )
            model, changed = build_model(recipe, program, seed)
            models.append(model)
            reports = reports or changed
    loss = first.remedies.loss
    config = TrainingConfig(
        first.epochs,
        first.batch_size,
        task=program.task(first),
        optimizer=first.optimizer.name,
        options=first.optimizer.options,
        schedule=Schedule(**first.schedule.model_dump()),
        augmentation=usual_augmentation(program.data.name) if first.data.augment else None,
        convention=loss.convention if loss else "paper",
        neurons=loss.neurons if loss else "position",
        where=loss.where if loss else None,
        probes=first.probes,
        members=first.engine.members,
        compile=first.engine.compile,
        cuda_graph=first.engine.cuda_graph,
    )
    return Training(models, members, histories, program.data, config, fabric, tell), reports


def waiting(recipe: Recipe, seed: int) -> History:
    """The history of a network that is not trained yet."""
    depth = getattr(recipe.model, "depth", 0)
    metric = recipe.task.task().metric.name
    return History(recipe.remedies.name, depth, recipe.optimizer.lr, seed, metric)


def architecture_key(recipe: Recipe) -> str:
    """A text that is the same for recipes whose networks can train as one stack."""
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude={"compare", "sweep"})
    for name in STACKABLE:
        section, *path = name.split(".")
        if section == "remedies":
            for part in content["remedies"]:
                if part["name"] == path[0]:
                    part.pop(path[1], None)
        else:
            content[section].pop(path[0])
    return repr(content)


def check_fits(recipe: Recipe, members: int, program: Program, device: torch.device) -> int:
    """The bytes that a stack of so many networks takes.

    Raises:
        ConfigError: they would not fit in memory; the message says how many would.
    """
    per_member = member_bytes(recipe, program, device)
    if device.type == "cpu":  # the processes of a host share its memory
        per_member *= recipe.engine.devices
    fit = members_that_fit(per_member, device)
    if members <= fit:
        return members * per_member
    sizes = [str(getattr(recipe.model, name)) for name in ("depth", "width") if hasattr(recipe.model, name)]
    each = f"{recipe.model.name} of {' layers of '.join(sizes)}"
    count = members if fit else 1
    needs = f"needs about {count * per_member / 1e9:.1f} GB and {free_bytes(device) / 1e9:.1f} GB are free"
    if fit:
        raise ConfigError(
            f"a stack of {members} networks ({each}) {needs}: {fit} would fit; take fewer seeds at once, or smaller "
            "batches",
            code="memory",
        )
    shared = "more devices" if recipe.engine.strategy == "fsdp" else "engine: {strategy: fsdp} over several devices"
    raise ConfigError(
        f"a network ({each}) {needs}: it would fit with smaller batches or layers, or {shared}", code="memory"
    )


def member_bytes(recipe: Recipe, program: Program, device: torch.device) -> int:
    """Memory that one member of a recipe's stack takes in a process, measured on a pass where its weights fit.

    Raises:
        ConfigError: a batch larger than the training set.
    """
    data = program.data
    count = len(data.train)
    if not data.batch_size and not isinstance(data.train, LoaderPart) and recipe.batch_size > count:
        raise ConfigError(
            f"batch_size: {recipe.batch_size} is more than the {count} training samples; write "
            f"batch_size={max(2, count // 4)}",
            code="batch-too-large",
        )
    processes = recipe.engine.devices * recipe.engine.nodes
    shares = processes if recipe.engine.strategy == "fsdp" else 1
    least = 0
    if not isinstance(recipe.model, OwnModel):
        with suppress(RuntimeError), torch.device("meta"):  # one that is registered may need values to be built, too
            least = least_bytes(program.network(recipe)) // shares
    if least > free_bytes(device):
        return least
    model, _ = build_model(recipe, program, 0)
    inputs = program.samples(model, (data.batch_size or recipe.batch_size) // processes)[0]
    places = _regularized(recipe, model, inputs)
    with naming_the_place():
        return bytes_per_member(model, inputs, places, shares=shares)


def _regularized(recipe: Recipe, model: nn.Module, inputs: Any) -> tuple[Place, ...]:
    """The layers that LBE reads.

    Raises:
        ConfigError: there are none, or one of them cannot be read.
    """
    loss: Any = recipe.remedies.loss
    if loss is None:
        return ()
    try:
        selection = select(model, loss.where, inputs=first_of(inputs, 2))
        selection.check_complete()
    except TrainabilityError as error:
        message = f"{recipe.remedies.name}: {error} (in a recipe: remedies.lbe.where)"
        raise ConfigError(message, code=error.code) from error
    return selection.places
