"""One network in training: a small loop that keeps its record as it goes."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainability.data import Dataset, Split
from trainability.data.augment import Augmentation
from trainability.flow import Flow, measure
from trainability.lbe import LBE
from trainability.observe import observing


@dataclass
class Record:
    """What is kept of a run; everything in it is a plain number, list or string."""

    remedy: str
    depth: int
    lr: float
    seed: int
    status: str = "waiting"  # waiting, training, done, diverged, interrupted
    steps: int = 0
    epochs: int = 0
    train_loss: list[tuple[int, float]] = field(default_factory=list)  # (step, mean of the loss since the last)
    lbe: list[tuple[int, float]] = field(default_factory=list)  # (step, L_BE)
    accuracy: list[tuple[int, float, float]] = field(default_factory=list)  # (step, validation %, test %)
    layers: list[str] = field(default_factory=list)
    flow: list[tuple[int, list[float], list[float]]] = field(default_factory=list)  # (step, entropies, stds)
    alpha: list[float] = field(default_factory=list)
    neurons: list[dict[str, Any]] = field(default_factory=list)
    step_ms: float | None = None

    @property
    def test_accuracy(self) -> float | None:
        """The last test accuracy in percent."""
        return self.accuracy[-1][2] if self.accuracy else None

    def result(self) -> dict[str, Any]:
        """Return the flat object of ``--json``."""
        entropy = self.flow[-1][1] if self.flow else []
        return {
            "remedy": self.remedy,
            "depth": self.depth,
            "lr": self.lr,
            "seed": self.seed,
            "test_accuracy": self.test_accuracy,
            "val_accuracy": self.accuracy[-1][1] if self.accuracy else None,
            "train_loss": self.train_loss[-1][1] if self.train_loss else None,
            "step_ms": self.step_ms,
            "status": self.status,
            "epochs": self.epochs,
            "steps": self.steps,
            "entropy_first": entropy[0] if entropy else None,
            "entropy_lowest": min(entropy) if entropy else None,
            "entropy_last": entropy[-1] if entropy else None,
            "entropy_last_at_start": self.flow[0][1][-1] if self.flow else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything."""
        return asdict(self)


class Run:
    """Trains one model on one data set, an epoch at a time, so that several can take turns."""

    def __init__(
        self,
        record: Record,
        model: nn.Module,
        data: Dataset,
        *,
        lbe: LBE | None,
        lr: float,
        batch_size: int,
        epochs: int,
        augmentation: Augmentation | None = None,
        probes: int = 20,
    ) -> None:
        self.record = record
        self.model = model
        self.lbe = lbe
        self._data = data
        self._augment = augmentation
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(record.seed)
        device = data.train.images.device
        self._device_generator = torch.Generator(device).manual_seed(record.seed)
        self._optimizer = torch.optim.Adam([*model.parameters(), *(lbe.parameters() if lbe else [])], lr=lr)
        self._steps_per_epoch = max(1, len(data.train) // batch_size)
        total = self._steps_per_epoch * epochs
        self._probe_at = {round(total * (i / probes) ** 1.5) for i in range(1, probes + 1)}  # denser at the start
        self._log_at = {round(total * i / 200) for i in range(1, 201)}
        index = torch.arange(min(512, len(data.train)), device=device)
        self._probe = data.inputs(data.train.take(index).images)
        self._times: list[float] = []
        self._losses: list[Tensor] = []

    def epoch(self) -> None:
        """Train one epoch and evaluate; a loss that is not finite ends the run and is recorded."""
        record = self.record
        record.status = "training"
        if not record.flow:
            self.probe()
            record.neurons.append(neuron_histograms(self.model, self._probe, "before training"))
        self.model.train()
        for images, labels in self._batches():
            if labels.is_cuda:  # so that the time is that of the step and not that of launching it
                torch.cuda.synchronize()
            begin = time.perf_counter()
            self._optimizer.zero_grad()
            ce = F.cross_entropy(self.model(images), labels)
            loss = self.lbe(ce) if self.lbe else ce
            loss.backward()
            self._optimizer.step()
            if ce.is_cuda:
                torch.cuda.synchronize()
            self._losses.append(ce.detach())
            self._times.append(time.perf_counter() - begin)
            record.steps += 1
            if record.steps in self._log_at:
                self._log()
            if record.steps in self._probe_at:
                self.probe()
        self._log()
        record.epochs += 1
        record.step_ms = 1e3 * median(self._times)
        record.accuracy.append((record.steps, self._accuracy(self._data.val), self._accuracy(self._data.test)))
        if record.train_loss and not record.train_loss[-1][1] < float("inf"):
            record.status = "diverged"

    def finish(self, status: str) -> None:
        """Record the end of training, complete (``"done"``) or ``"interrupted"``."""
        record = self.record
        if record.status == "training":
            record.status = status
            record.neurons.append(neuron_histograms(self.model, self._probe, "after training"))
        if self.lbe:
            record.alpha = self.lbe.alpha.detach().tolist()
            self.lbe.remove()

    def probe(self) -> None:
        """Measure the flow on a fixed batch of training images."""
        flow: Flow = measure(self.model, self._probe)
        self.record.layers = [layer.name for layer in flow]
        self.record.flow.append((self.record.steps, [layer.entropy for layer in flow], [layer.std for layer in flow]))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        train = self._data.train
        order = torch.randperm(len(train), generator=self._generator).to(train.images.device)
        size = min(self._batch_size, len(train))
        for start in range(0, self._steps_per_epoch * size, size):
            batch = train.take(order[start : start + size])
            if self._augment is None:
                yield self._data.inputs(batch.images), batch.labels
            else:
                pixels = self._augment(batch.images.float().div_(255), self._device_generator)
                yield self._data.normalise(pixels), batch.labels

    def _log(self) -> None:
        if not self._losses:
            return
        step = self.record.steps
        self.record.train_loss.append((step, float(torch.stack(self._losses).mean())))
        if self.lbe:
            self.record.lbe.append((step, self.lbe.last.lbe))
        self._losses.clear()

    @torch.no_grad()
    def _accuracy(self, part: Split) -> float:
        self.model.eval()
        right = sum(
            (self.model(self._data.inputs(images)).argmax(1) == labels).sum()
            for images, labels in zip(torch.split(part.images, 2048), torch.split(part.labels, 2048), strict=True)
        )
        self.model.train()
        return 100.0 * float(right) / len(part)


def neuron_histograms(model: nn.Module, inputs: Tensor, when: str, bins: int = 40) -> dict[str, Any]:
    """Histograms of one neuron before the nonlinearity of the first, a middle and the last hidden layer.

    The neuron is that of median variance, so neither the liveliest nor a dead one.
    """
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][:-1]
    chosen = {index: linear[index] for index in sorted({0, len(linear) // 2, len(linear) - 1})}
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
        for name, module in chosen.values()
    ]
    try:
        with observing(model), torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for index, (name, _) in chosen.items():
        variance = seen[name].var(0)
        values = seen[name][:, variance.argsort()[len(variance) // 2]]
        if not bool(values.isfinite().all()):
            continue
        low, high = float(values.min()), float(values.max())
        pad = max(1e-3, 0.05 * (high - low))
        counts = torch.histc(values, bins=bins, min=low - pad, max=high + pad)
        entropy = float(0.5 * torch.log1p(2 * torch.pi * torch.e * values.var()))
        rows.append(
            {
                "layer": index + 1,
                "name": name,
                "low": low - pad,
                "high": high + pad,
                "counts": counts.tolist(),
                "entropy": entropy,
            }
        )
    return {"when": when, "rows": rows}
