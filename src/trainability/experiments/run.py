"""Run an experiment: one stack of networks, or the stacks of a comparison side by side."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainability._references import load, naming_the_place
from trainability.data.dataset import Split
from trainability.data.streamed import DatasetPart
from trainability.errors import ArgumentError, ConfigError, DataError, FolderError, UnsupportedModelError
from trainability.experiments.build import (
    architecture_key,
    build_model,
    build_training,
    check_fits,
    open_fabric,
    waiting,
)
from trainability.experiments.comparison import Comparison, Side
from trainability.experiments.environment import describe_environment
from trainability.experiments.program import Program, Resolve, references
from trainability.experiments.recipe import Recipe
from trainability.experiments.sources import NAME, check_sources, fingerprint, sources
from trainability.experiments.trial import needs_trial, try_out
from trainability.remedies.apply import Report
from trainability.stack.memory import free_bytes
from trainability.stack.module import Stack
from trainability.training.batches import steps_per_epoch
from trainability.training.folder import Writer, open_writer
from trainability.training.history import History
from trainability.training.interrupts import deferred
from trainability.training.places import Existing
from trainability.training.restoring import as_kind
from trainability.training.run import Run, naming_the_dead

Progress = Callable[[Comparison, int, int], None]


def run(
    recipe: Recipe,
    out: Path,
    *,
    existing: Existing = "refuse",
    environment: dict[str, Any] | None = None,
    progress: Progress = lambda comparison, done, total: None,
    resolve: Resolve = load,
) -> Comparison:
    """Run a recipe, keeping its record in a folder; interrupted or killed, it goes on to the same weights.

    Every seed of a side, and sides that differ in learning rates or strengths of LBE alone, train as one stack. Stacks
    that differ in remedies take turns, an epoch each. A seed means the same initial weights where the initialization is
    the same, and the same batches. Resumed with more epochs, it goes on to the weights of a run of so many. Several
    processes share each batch, and the first of them writes the folder. An interrupt ends the training with a
    checkpoint, and with the report of what there is by then.

    Args:
        recipe: what to run.
        out: the folder.
        existing: what becomes of a folder that holds results: ``"refuse"``, ``"resume"`` or ``"overwrite"``.
        environment: what the record keeps beside versions and machine.
        progress: is called with the comparison, the steps done, and all steps.
        resolve: from a reference to something of the user's own to the object.

    Raises:
        ConfigError, FolderError, DataError: before anything is trained.
        OSError: the folder cannot be written to any more; the last checkpoint stays.
    """
    with naming_the_dead():
        return _Experiment(recipe, out, existing, environment or {}, progress, resolve).train()


@dataclass
class _Stack:
    """The sides that train as one stack, the folder of their record, and how far they are.

    With ``seed`` it has the networks of that seed alone, since those of different seeds are not alike.
    """

    sides: list[Side]
    path: Path
    turn: str
    seed: int | None = None
    needs: int = 0
    steps: int = 0
    total: int = 0
    writer: Writer = field(default_factory=Writer)

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe of every side."""
        found = [side.cell.recipe for side in self.sides]
        return found if self.seed is None else [recipe.with_values({"seeds": [self.seed]}) for recipe in found]

    @property
    def histories(self) -> list[History]:
        """The histories of its networks."""
        return [h for side in self.sides for h in side.histories if self.seed in (None, h.seed)]

    def keep(self, histories: list[History]) -> None:
        """Give every side its part of the histories of the stack."""
        own = iter(histories)
        for side in self.sides:
            side.histories = [next(own) if self.seed in (None, h.seed) else h for h in side.histories]

    def report(self, reports: Sequence[Report]) -> list[dict[str, Any]]:
        """Give every side what remedies did to the first of the networks, and return it as plain values."""
        described = [report.to_dict() for report in reports]
        for side in self.sides:
            side.reports = described
        return described


class _Experiment:
    """The checks before anything is trained, and then the training."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        existing: Existing,
        environment: dict[str, Any],
        progress: Progress,
        resolve: Resolve,
    ) -> None:
        self.recipe, self.out, self.existing, self._progress = recipe, out, existing, progress
        self.fabric = open_fabric(recipe)
        self.program = Program.of(recipe, resolve)
        data = self.program.data
        described = data.describe()
        own = fingerprint(data) if recipe.data.own else {}
        self._sources = {**sources(recipe, resolve), **own}
        check_sources(out, self._sources, existing)
        sides = [Side(cell, [waiting(cell.recipe, seed) for seed in cell.recipe.seeds]) for cell in recipe.cells()]
        self._notes: list[str] = []
        self.stacks = self._stacks(sides)
        for stack in self.stacks:
            first, members = stack.recipes[0], sum(len(own.seeds) for own in stack.recipes)
            if needs_trial(first):
                try_out(first, self.program, build_model(first, self.program, first.seeds[0])[0])
            stack.needs = check_fits(first, members, self.program, self.fabric.device)
            stack.total = first.epochs * steps_per_epoch(data, first.batch_size)
        self.environment = {**describe_environment(), **environment, "data": described}
        scored = self.program.task(recipe)
        part = data.test if len(data.test) else data.val
        chance = None
        if scored.chance and isinstance(part, Split):
            chance = scored.chance.of(data.prepared(part)[1] if data.reconstructs else part.targets)
        self.comparison = Comparison(recipe, described, self.environment, sides, scored, chance)
        self.comparison.notes += self._notes

    def _stacks(self, sides: list[Side]) -> list[_Stack]:
        found: dict[str, _Stack] = {}
        for side in sides:
            recipe = side.cell.recipe
            one_by_one = not self._alike(recipe)
            for seed in recipe.seeds if one_by_one else (None,):
                key = architecture_key(recipe) + f" {seed}" * one_by_one
                if key not in found:
                    found[key] = self._stack(side, len(found) + 1, seed)
                found[key].sides.append(side)
        return list(found.values())

    def _stack(self, side: Side, number: int, seed: int | None) -> _Stack:
        """The stack of this number, without its sides."""
        shared = {name: v for name, v in side.cell.values.items() if not name.startswith("remedies.")}
        own = f"{number}-{side.remedies.name}" + ("" if seed is None else f"-seed{seed}")
        place = self.out / "stacks" / own if self.recipe.compare or seed is not None else self.out
        return _Stack([], place, repr([v for n, v in shared.items() if n != "optimizer.lr"]), seed)

    def _alike(self, recipe: Recipe) -> bool:
        """Return whether networks of different seeds can be stacked; a note says why not."""
        if len(recipe.seeds) == 1 or not references(recipe):
            return True
        train = self.program.data.train
        if isinstance(train, DatasetPart) and not train.plain:
            self._notes.append(f"{recipe.remedies.name}: the networks run one after another, as the loader collates.")
            return False
        try:
            Stack([build_model(recipe, self.program, seed)[0] for seed in recipe.seeds[:2]])
        except UnsupportedModelError as error:
            self._notes.append(f"The networks of {recipe.remedies.name} run one after another: {error}.")
            return False
        return True

    def _turns(self) -> Iterator[list[_Stack]]:
        """Yield the stacks that take turns; those that would not fit in memory beside one another one by one."""
        for turn in dict.fromkeys(stack.turn for stack in self.stacks):
            stacks = [stack for stack in self.stacks if stack.turn == turn]
            if sum(stack.needs for stack in stacks) <= free_bytes(self.fabric.device):
                yield stacks
            else:
                yield from ([stack] for stack in stacks)

    def train(self) -> Comparison:
        """Train all stacks, or go on with them, until they are done or an interrupt asks to stop; write the report."""
        begin = time.monotonic()
        config = self.recipe.resolved()
        own = self._logging(self.stacks[0]) if self.recipe.compare is None else {}
        opening = self._open(self.out, config, self.existing, **own)
        with opening as writer, deferred(self.fabric) as interrupted:
            if self._sources:
                writer.write(NAME, self._sources)
            try:
                for turn in self._turns():
                    if not self._take_turns(turn, writer, interrupted):
                        self.comparison.interrupted = True
                        break
            except (ConfigError, DataError):
                self._discard(writer)
                raise
            self.comparison.seconds = time.monotonic() - begin
            if self.fabric.is_global_zero:
                from trainability.report.page import write_report

                write_report(self.comparison, self.out)
        return self.comparison

    def _open(
        self, path: Path, config: dict[str, Any], existing: Existing, **logging: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        fixed = self.recipe.fixed_length()
        return open_writer(self.fabric, path, config, self.environment, existing, fixed_length=fixed, **logging)

    def _discard(self, writer: Writer) -> None:
        """Leave nothing of an experiment that was refused before the end of its first epoch."""
        if self.existing == "resume" or any(history.scores for history in self.comparison.histories):
            return
        for stack in self.stacks:
            stack.writer.discard()
        writer.discard()

    def _logging(self, stack: _Stack) -> dict[str, Any]:
        """The loggers of a stack, and the names of its networks there."""
        several = len(stack.sides) > 1
        members = [
            "".join(f"{name}={value}," for name, value in side.cell.values.items() if several) + f"seed{seed}"
            for side in stack.sides
            for seed in ([stack.seed] if stack.seed is not None else side.cell.recipe.seeds)
        ]
        return {"loggers": self.recipe.loggers, "members": members}

    def _take_turns(self, stacks: list[_Stack], writer: Writer, interrupted: Callable[[int], bool]) -> bool:
        """Train stacks, an epoch each in turn; tell whether they came to their end."""
        with ExitStack() as opened:
            runs = [(stack, found) for stack in stacks if (found := self._begin(stack, writer, opened))]
            while waiting := [(stack, own) for stack, own in runs if not own.training.done]:
                for stack, own in waiting:
                    if not own.epoch(partial(self._after_step, stack, own, interrupted)):
                        for _, other in runs:
                            other.stop()
                        return False
                    if own.training.done:
                        own.finish()
        return True

    def _after_step(self, stack: _Stack, own: Run, interrupted: Callable[[int], bool]) -> bool:
        stack.steps = own.training.steps
        done = sum(stack.steps for stack in self.stacks)
        self._progress(self.comparison, done, sum(stack.total for stack in self.stacks))
        return interrupted(own.training.steps)

    def _begin(self, stack: _Stack, writer: Writer, opened: ExitStack) -> Run | None:
        """Open a stack's folder and prepare or take up its training; None where it is done."""
        resume = self.existing == "resume"
        if stack.path != self.out:
            there: Existing = "resume" if resume and (stack.path / "recipe.yaml").exists() else "refuse"
            resume = self.fabric.broadcast(there == "resume")
            content = {"networks": [recipe.resolved() for recipe in stack.recipes]}
            opening = self._open(stack.path, content, there, **self._logging(stack))
            writer = stack.writer = opened.enter_context(opening)
        state, damaged = writer.newest() if resume else (None, ())
        self._note_resuming(stack, resume, state, damaged)
        if finished := self.fabric.broadcast(_finished(state, stack.total)):
            stack.steps = stack.total
            _restore(stack.histories, finished)
            stack.report(build_model(stack.recipes[0], self.program, stack.recipes[0].seeds[0])[1])
            return None
        with naming_the_place():
            training, reports = build_training(stack.recipes, self.program, self.fabric, writer.note)
        opened.callback(training.batches.close)
        stack.keep(training.histories)
        writer.write("remedies.json", stack.report(reports))
        first = stack.recipes[0]
        whose = f"{first.model.name} on {self.program.data.name}, in training" if references(first) else ""
        own = Run(training, writer, self.recipe.checkpoint_every, whose)
        try:
            own.begin(state)
        except UnsupportedModelError as error:
            raise ConfigError(str(error), code=error.code) from error
        if training.execution["members"] == "loop" and self.recipe.engine.members == "auto":
            self.comparison.notes.append(f"{stack.sides[0].remedies.name}: the networks run one after another.")
        return own

    def _note_resuming(self, stack: _Stack, resume: bool, state: dict[str, Any] | None, damaged: Sequence[str]) -> None:
        self.comparison.notes += [f"The checkpoint {name} is damaged and was set aside." for name in damaged]
        if resume:
            step = f"step {state['steps']}" if state else "the beginning"
            self.comparison.notes.append(f"Resumed {stack.sides[0].remedies.name} at {step}.")


def _finished(state: dict[str, Any] | None, total: int) -> list[dict[str, Any]] | None:
    """The histories in a checkpoint of a stack that is done with so many steps."""
    kept = (state or {}).get("histories")
    if not isinstance(kept, list) or not kept or not all(isinstance(history, dict) for history in kept):
        return None
    ends = ("done", "diverged") if state and state["steps"] == total else ("diverged",)  # the others can go on
    return kept if all(history.get("status") in ends for history in kept) else None


def _restore(histories: Sequence[History], finished: Sequence[dict[str, Any]]) -> None:
    """Take the histories of a stack that is done from its checkpoint.

    Raises:
        FolderError: they are damaged, or of other networks.
    """
    try:
        kept = as_kind(finished, list[History], "histories")
        if [history.identity for history in kept] != [history.identity for history in histories]:
            raise ArgumentError("its seeds or settings differ", code="other-networks")
    except ArgumentError as error:
        raise FolderError(
            f"the newest checkpoint is not one of this run: {error}; remove it to go on from the one before it",
            code=error.code,
        ) from None
    for history, found in zip(histories, finished, strict=True):
        history.restore(found)
