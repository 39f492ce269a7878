"""The history of a run: what happened to one network in training, as points with names."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainability.dependence.dropout import DropoutEffect
from trainability.dependence.pairs import Independence
from trainability.training.restoring import as_kind


@dataclass(frozen=True)
class LossPoint:
    """Mean training loss since the last such point, and L_BE at the step, for a run with LBE."""

    step: int
    loss: float
    lbe: float | None = None


@dataclass(frozen=True)
class ScorePoint:
    """The task's main metric on the validation part and on the test part, where there is one.

    Its other metrics are in ``others``, as ``val_name`` and ``test_name``.
    """

    step: int
    val: float | None
    test: float | None
    others: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FlowPoint:
    """Batch entropy in nats and standard deviation of every layer."""

    step: int
    entropy: list[float]
    std: list[float]


@dataclass(frozen=True)
class SignalPoint:
    """Mean square q, and mean cosine c between two inputs, after every layer."""

    step: int
    q: list[float]
    c: list[float]


@dataclass(frozen=True)
class Histogram:
    """Values of one neuron of a layer, the ``number``-th from 1, in bins from ``low`` to ``high``."""

    number: int
    layer: str
    low: float
    high: float
    counts: list[float]
    entropy: float


@dataclass(frozen=True)
class NeuronPoint:
    """Histograms of single neurons of some layers."""

    step: int
    layers: list[Histogram]


@dataclass(frozen=True)
class InputIndependence:
    """Independence of what a weight layer, the ``number``-th from 1, receives."""

    number: int
    layer: str
    measured: Independence


@dataclass(frozen=True)
class IndependencePoint:
    """Independence of the inputs of some weight layers."""

    step: int
    layers: list[InputIndependence]


@dataclass(frozen=True)
class LayerDropout:
    """Effects of several dropouts on two neurons of a layer."""

    layer: str
    effects: list[DropoutEffect]


@dataclass
class History:
    """The course of one run, of plain numbers, strings and points of these.

    >>> history = History("lbe", depth=2, lr=1e-3, seed=0)
    >>> history.scores.append(ScorePoint(step=10, val=88.0, test=90.0))
    >>> again = History("lbe", depth=2, lr=1e-3, seed=0)
    >>> again.restore(history.to_dict())
    >>> again.scores[-1].test
    90.0
    """

    remedy: str
    depth: int
    lr: float
    seed: int
    metric: str = "accuracy"  # the task's main one
    status: str = "waiting"  # waiting, training, done, diverged, interrupted
    steps: int = 0
    epochs: int = 0
    losses: list[LossPoint] = field(default_factory=list)
    scores: list[ScorePoint] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    flow: list[FlowPoint] = field(default_factory=list)
    signal: list[SignalPoint] = field(default_factory=list)
    predicted: SignalPoint | None = None  # for the start, by the scale of the weights
    alpha: list[float] = field(default_factory=list)
    neurons: list[NeuronPoint] = field(default_factory=list)
    independence: list[IndependencePoint] = field(default_factory=list)
    dropout: LayerDropout | None = None
    step_ms: float | None = None  # of the stack that it trained in, over the number of its members

    @property
    def identity(self) -> tuple[str, int, float, int]:
        """The settings by which a network is told from others of an experiment."""
        return self.remedy, self.depth, self.lr, self.seed

    @property
    def val(self) -> float | None:
        """The last validation score."""
        return self.scores[-1].val if self.scores else None

    @property
    def test(self) -> float | None:
        """The last test score."""
        return self.scores[-1].test if self.scores else None

    def result(self) -> dict[str, Any]:
        """Return the flat object of ``--json``."""
        entropy = self.flow[-1].entropy if self.flow else []
        return {
            "remedy": self.remedy,
            "seed": self.seed,
            "status": self.status,
            "depth": self.depth,
            "lr": self.lr,
            f"test_{self.metric}": self.test,
            f"val_{self.metric}": self.val,
            **(self.scores[-1].others if self.scores else {}),
            "train_loss": self.losses[-1].loss if self.losses else None,
            "step_ms": self.step_ms,
            "epochs": self.epochs,
            "steps": self.steps,
            "entropy_first": entropy[0] if entropy else None,
            "entropy_lowest": min(entropy) if entropy else None,
            "entropy_last": entropy[-1] if entropy else None,
            "entropy_last_at_start": self.flow[0].entropy[-1] if self.flow else None,
            "q_last": self.signal[-1].q[-1] if self.signal else None,
            "c_last": self.signal[-1].c[-1] if self.signal else None,
        }

    def reopen(self) -> None:
        """Go on with a run that was done: what was observed at its end is left out, since it has another end now."""
        if self.status == "done":
            self.status, self.alpha, self.dropout = "training", [], None
            del self.neurons[1:], self.independence[1:]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, points as dictionaries."""
        return asdict(self)

    def restore(self, kept: dict[str, Any]) -> None:
        """Take everything back from what `to_dict` returned.

        Raises:
            ArgumentError: it is not what `to_dict` returns; nothing was taken then.
        """
        vars(self).update(vars(as_kind(kept, History, "history")))
