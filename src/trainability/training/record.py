"""What is kept of the training of one network."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


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
    accuracy: list[tuple[int, float | None, float]] = field(default_factory=list)  # (step, val %, test %)
    layers: list[str] = field(default_factory=list)
    flow: list[tuple[int, list[float], list[float]]] = field(default_factory=list)  # (step, entropies, stds)
    kernel: list[tuple[int, list[float], list[float]]] = field(default_factory=list)  # (step, q, c) after each layer
    predicted: tuple[list[float], list[float]] | None = None  # q and c at the start, by the weights' scale
    alpha: list[float] = field(default_factory=list)
    neurons: list[dict[str, Any]] = field(default_factory=list)
    independence: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)  # (step, what layers receive)
    gates: list[dict[str, Any]] = field(default_factory=list)  # what gates do to two neurons of an IC layer
    step_ms: float | None = None  # of the stack that it trained in, over the number of its members

    @property
    def val_accuracy(self) -> float | None:
        """The last validation accuracy in percent."""
        return self.accuracy[-1][1] if self.accuracy else None

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
            "val_accuracy": self.val_accuracy,
            "train_loss": self.train_loss[-1][1] if self.train_loss else None,
            "step_ms": self.step_ms,
            "status": self.status,
            "epochs": self.epochs,
            "steps": self.steps,
            "entropy_first": entropy[0] if entropy else None,
            "entropy_lowest": min(entropy) if entropy else None,
            "entropy_last": entropy[-1] if entropy else None,
            "entropy_last_at_start": self.flow[0][1][-1] if self.flow else None,
            "q_last": self.kernel[-1][1][-1] if self.kernel else None,
            "c_last": self.kernel[-1][2][-1] if self.kernel else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything."""
        return asdict(self)

    def restore(self, kept: dict[str, Any]) -> None:
        """Take everything back from what `to_dict` returned."""
        for entry in fields(self):
            setattr(self, entry.name, kept[entry.name])
