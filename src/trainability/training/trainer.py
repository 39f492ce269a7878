"""The training of a stack, and the state from which it is taken up again."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainability.data.dataset import Dataset, Part
from trainability.errors import ArgumentError
from trainability.introspect.hooks import Place
from trainability.introspect.outputs import first_of, in_dtype, map_tensors
from trainability.introspect.select import select
from trainability.lbe.stacked import StackLBE
from trainability.stack.cuda_graphs import CudaGraph, synchronize
from trainability.stack.module import Stack
from trainability.tasks.scoring import Evaluation
from trainability.training.batches import batches_of
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.devices import fabric_on
from trainability.training.execution import Execution
from trainability.training.history import History, LossPoint, ScorePoint
from trainability.training.observations import Observer
from trainability.training.sharding import gathered, load_weights
from trainability.training.state import check_state
from trainability.training.step import Step
from trainability.training.updates import Updates

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# On an accelerator asking whether a loss is finite waits for it, so it is asked now and then.
_LOOK_EVERY = 20


class Training:
    """Trains a stack, a step or an epoch at a time; ``state()`` at any step and ``load()`` continue it to the bit.

    A member whose loss is no longer finite is marked and left at the weights it has then; the others do not notice. (On
    an accelerator this is looked at every 20 steps, so its weights may be NaN by then.) What is random depends on the
    member's seed and the step alone.

    Args:
        models: one network per member, of one architecture, with its initial weights.
        members: their seeds, learning rates and LBE.
        histories: where each one's course is written.
        data: the data set.
        config: what they share.
        fabric: devices, precision and processes; one CPU process in float32 by default.
        tell: is called with the name and values of each event: ``losses``, ``scores``, ``diverged``.
        make_graph: makes what records a step; CUDA graphs by default where one process has a CUDA device.

    Raises:
        ValueError: models, members and histories differ in number, or the configuration asks for a CUDA graph on a
            device without them.

    >>> from trainability.data import load
    >>> from trainability.models import fnn
    >>> data = load("digits")  # or Dataset(...) of Splits of uint8 images (N, C, H, W) and labels (N,)
    >>> members = [Member(seed=0, lr=1e-3), Member(seed=1, lr=1e-2, lbe=Strength(alpha=0.5, beta=0.2))]
    >>> histories = [History("mine", depth=2, lr=m.lr, seed=m.seed) for m in members]
    >>> models = [fnn(64, 2, 16, 10) for _ in members]
    >>> training = Training(models, members, histories, data, TrainingConfig(2, batch_size=64))
    >>> training.prepare()
    >>> while not training.done:
    ...     training.epoch()
    >>> training.finish("done")
    >>> [len(history.scores) for history in histories]  # after each epoch
    [2, 2]
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        members: Sequence[Member],
        histories: Sequence[History],
        data: Dataset,
        config: TrainingConfig,
        fabric: "Fabric | None" = None,
        tell: Callable[..., None] = lambda event, **values: None,
        make_graph: Callable[[Sequence[torch.Generator]], CudaGraph] | None = None,
    ) -> None:
        if not len(models) == len(members) == len(histories):
            counts = f"{len(models)} models, {len(members)} members and {len(histories)} histories"
            raise ArgumentError(f"there are {counts}; give one of each for every network", code="counts-differ")
        self.members, self.histories, self.config = list(members), list(histories), config
        self.fabric = fabric = fabric or fabric_on("cpu")
        if config.cuda_graph == "on" and make_graph is None and fabric.device.type != "cuda":
            raise ArgumentError(
                f"cuda_graph: on needs a CUDA device, and this is {fabric.device.type}", code="needs-cuda"
            )
        self.data = data = data.to(fabric.device)
        for history in self.histories:
            history.metric = config.task.metric.name
        self.batches = batches_of(
            data,
            [m.seed for m in members],
            config.batch_size,
            config.augmentation,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        self._tell = tell
        self.steps = 0
        self.total_steps = config.epochs * self.batches.per_epoch
        probe = data.prepared(data.train.first(512))[0]
        regularized = any(m.lbe for m in members)
        places: tuple[Place, ...] = ()
        if regularized:
            selection = select(models[0], config.where, inputs=in_dtype(first_of(probe, 2), _like(models[0]).dtype))
            selection.check_complete()
            places = selection.places
        self.stack = Stack(models, taps=places, neurons=config.neurons)
        fabric.to_device(self.stack)
        # Not fabric.setup_module: its wrapper turns all outputs to float32, which is wrong for float64.
        forward = fabric.strategy.setup_module(fabric.strategy.precision.convert_module(self.stack))
        self.lbe: StackLBE | None = None
        if regularized:
            strengths = [m.lbe or Strength(beta=0.0) for m in members]
            self.lbe = StackLBE(
                [place.name for place in places],
                [s.alpha for s in strengths],
                [s.beta for s in strengths],
                [s.alpha_min for s in strengths],
                convention=config.convention,
                like=_like(self.stack),
            )
        self.updates = Updates(
            self.stack,
            self.lbe.alpha if self.lbe else None,
            members,
            config,
            self.batches.per_epoch,
        )
        not_recorded = None
        if make_graph is None and fabric.device.type == "cuda" and config.cuda_graph != "off":
            if fabric.world_size == 1:
                make_graph = partial(CudaGraph, fabric.device)
            else:
                not_recorded = "several processes share each batch"
        self._one_step = Step(
            self.stack, forward, self.lbe, self.updates, self.batches, config.task, fabric, make_graph
        )
        self._execution = Execution(self.stack, self._one_step, config, fabric, make_graph)
        if not_recorded:
            self.execution["not_recorded"] = not_recorded
        self._observer = Observer(self.stack, self.histories, in_dtype(probe, self.stack.dtype))
        self._losses: list[Tensor] = []
        self._times: list[float] = []
        self._look_every = 1 if fabric.device.type == "cpu" else _LOOK_EVERY
        self._begun: tuple[float, int] | None = None
        self._log_at = {round(self.total_steps * i / 200) for i in range(1, 201)}
        # denser at the start, where most happens
        self._probe_at = {round(self.total_steps * (i / config.probes) ** 1.5) for i in range(1, config.probes + 1)}

    def prepare(self) -> None:
        """Choose how the members run, by measurement.

        Raises:
            UnsupportedModelError: they cannot run as the configuration wants them.
        """
        self._execution.choose(self.total_steps)

    @property
    def execution(self) -> dict[str, Any]:
        """The way in which the members run, and the measurements by which it was chosen."""
        return self._execution.chosen

    @property
    def alive(self) -> list[bool]:
        """A flag for each member that is still trained."""
        return self._one_step.alive

    def step(self) -> Tensor:
        """Train one step and return the losses ``(E,)`` without the LBE term."""
        looks = self.steps % self._look_every == 0
        losses = self._one_step(self.steps, self._freeze if looks else None)
        self.steps += 1
        return losses

    def _freeze(self, totals: Tensor) -> None:
        """Mark the members whose loss is not finite on any rank."""
        if self.fabric.world_size > 1:
            if self.lbe and self.lbe.mean_losses is not None and self.lbe.lbe is not None:
                totals = self.lbe.mean_losses + self.lbe.lbe  # the same on every rank already
            else:
                totals = totals.clone()
                dist.all_reduce(totals)
        for e, finite in enumerate(totals.isfinite().tolist()):
            if not finite and self.alive[e]:
                self._one_step.freeze(e)
                self.histories[e].status = "diverged"
                self._tell("diverged", step=self.steps + 1, member=e)

    def advance(self) -> None:
        """Train one step and record what is due: losses, flow and, at the end of an epoch, scores."""
        if self.steps == 0:
            self._observer.start()
        self.stack.module.train()
        if self._begun is None:
            self._begun = time.perf_counter(), self.steps
        self._losses.append(self.step())
        for history in self._living():
            history.steps = self.steps
        ended = self.steps % self.batches.per_epoch == 0
        logs = self.steps in self._log_at or ended
        probes = self.steps in self._probe_at
        if logs or probes or self.steps % self._look_every == 0:
            self._note_time(*self._begun)
        if logs:
            self._log()
        if probes:
            self._observer.look(self.steps)
        if ended:
            self._evaluate()

    def _note_time(self, begin: float, step: int) -> None:
        """Note what a step has taken since then, where the device is waited for anyway."""
        synchronize(self.fabric.device)
        self._times.append((time.perf_counter() - begin) / (self.steps - step))
        self._begun = None

    def epoch(self) -> None:
        """Train to the end of the epoch, or until no member is left."""
        while any(self.alive):
            self.advance()
            if self.steps % self.batches.per_epoch == 0:
                break

    @property
    def done(self) -> bool:
        """True once nothing is left to train."""
        return self.steps >= self.total_steps or not any(self.alive)

    def finish(self, status: str) -> None:
        """Record the end of training, complete (``"done"``) or ``"interrupted"``."""
        self._observer.finish(self.steps, status)
        for e, history in enumerate(self.histories):
            if self.lbe and self.members[e].lbe:
                history.alpha = self.lbe.alpha[e].tolist()
        self.stack.remove()

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs, of tensors, numbers, strings, lists and dictionaries.

        Where weights are sharded over processes, all of them have to call it.
        """
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "alive": list(self.alive),
            "execution": dict(self.execution),
            "weights": gathered(self.stack.module.state_dict()),
            "lbe": self.lbe.state_dict() if self.lbe else None,
            "updates": self.updates.state(),
            "losses": list(self._losses),
            "times": self._times[-1000:],
            "histories": [history.to_dict() for history in self.histories],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned for the same recipe; call it instead of `prepare`.

        The number of epochs may have grown since, unless the schedule depends on it. Networks that were done then go on
        to the same weights, to the bit, as if they had had so many epochs from the start.

        Raises:
            ArgumentError: the state is of other networks, or damaged. Nothing of it was taken then.
        """
        check_state(state, self)
        load_weights(self.stack.module, state["weights"])
        if self.lbe:
            self.lbe.load_state_dict(state["lbe"])
        self.updates.load(state["updates"])
        for history, kept in zip(self.histories, state["histories"], strict=True):
            history.restore(kept)
            if state["steps"] < self.total_steps:
                history.reopen()
        self.steps = state["steps"]
        for member, alive in enumerate(state["alive"]):
            if not alive:
                self._one_step.freeze(member)
        self._losses = [t.to(self.fabric.device) for t in state["losses"]]
        self._times = list(state["times"])
        self._execution.repeat(state["execution"])

    def _living(self) -> list[History]:
        return [h for h, alive in zip(self.histories, self.alive, strict=True) if alive]

    def _log(self) -> None:
        if not self._losses:
            return
        mean = torch.stack(self._losses).mean(0)
        if self.fabric.world_size > 1:
            dist.all_reduce(mean)
        losses = (mean / self.fabric.world_size).tolist()
        terms = self.lbe.lbe.tolist() if self.lbe and self.lbe.lbe is not None else None
        self._tell("losses", step=self.steps, loss=losses, **({"lbe": terms} if terms else {}))
        for e, history in enumerate(self.histories):
            if history.status in ("training", "diverged") and history.steps == self.steps:
                lbe = terms[e] if terms and self.members[e].lbe else None
                history.losses.append(LossPoint(self.steps, losses[e], lbe))
        self._losses.clear()

    def _evaluate(self) -> None:
        """Score every member at the end of an epoch."""
        # One process's word for all: the statistics of a BatchNorm, and so a plateau, would differ between them.
        parts = {"val": self.data.val, "test": self.data.test}
        found = self.fabric.broadcast({name: self.scores(part) for name, part in parts.items() if len(part)})
        main, *others = [metric.name for metric in self.config.task.metrics]
        val, test = (found[name][main] if name in found else None for name in parts)
        step_ms = 1e3 * median(self._times) / len(self.stack)
        more = {f"{part}_{name}": scores[name] for part, scores in found.items() for name in others}
        both = {name: values for name, values in (("val", val), ("test", test)) if values}
        self._tell("scores", step=self.steps, **both, **more, step_ms=step_ms)
        for e, history in enumerate(self.histories):
            if history.status == "training":
                history.epochs = self.steps // self.batches.per_epoch
                history.step_ms = step_ms
                own = {name: values[e] for name, values in more.items()}
                point = ScorePoint(self.steps, val[e] if val else None, test[e] if test else None, own)
                history.scores.append(point)
                if val:
                    self.updates.plateau(e, val[e])

    def scores(self, part: Part) -> dict[str, list[float]]:
        """Every metric of the task on a part of the data, of each member."""
        members = len(self.stack)
        evaluation = Evaluation(self.config.task, members)
        with self.fabric.autocast():
            for samples in part.chunks(max(64, 4096 // members)):
                inputs, targets = self.data.prepared(samples)
                outputs = self.stack.predict(in_dtype(inputs, self.stack.dtype))
                targets = in_dtype(targets, self.stack.dtype)
                evaluation.update(outputs, map_tensors(lambda t: t.expand(members, *t.shape), targets))
        return evaluation.values()


def _like(module: nn.Module) -> Tensor:
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
