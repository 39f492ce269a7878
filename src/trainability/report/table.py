"""The table of a comparison: one row per remedy, the same in the terminal and on the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from trainability.experiments.comparison import Section
from trainability.report.answer import Answer, Contender, Margin, contender, counted, learns, margin
from trainability.tasks import Metric, Task
from trainability.training.history import History, SignalPoint

Change = tuple[float, float]  # at the start and at the end


@dataclass(frozen=True)
class Line:
    """What came of a remedy, over its seeds.

    Args:
        remedy: its name.
        what: it is.
        scores: at the end, one per seed.
        median: of them.
        margin: over the reference, which has None.
        verdict: whether it learns; empty where no chance is known.
        step_ms: milliseconds of a step.
        cost: time of a step over that of the plain network.
        entropy: nats that the last hidden layer carries, where they were measured.
        q: mean square of the signal after it.
        c: mean cosine of two inputs after it.
        predicted: c before training, from the scale of the weights.
        reading: the signal in words.
    """

    remedy: str
    what: str
    scores: tuple[float, ...]
    median: float
    margin: Margin | None
    verdict: str
    step_ms: float | None
    cost: float | None
    entropy: Change | None
    q: Change | None
    c: Change | None
    predicted: float | None
    reading: str

    @property
    def low(self) -> float:
        """The lowest score."""
        return min(self.scores)

    @property
    def high(self) -> float:
        """The highest score."""
        return max(self.scores)


def table(section: Section, task: Task, chance: float | None, found: Answer) -> list[Line]:
    """One row per remedy, the strongest first."""
    metric = task.metric
    sides = {name: contender(name, runs, metric) for name, runs in section.histories.items()}
    against = reference(section, metric)
    plain = sides.get(found.plain or "")
    rows = [_line(section, task, chance, side, sides[against] if against else None, plain) for side in sides.values()]
    return sorted(rows, key=lambda row: row.median, reverse=metric.direction == "max")


def reference(section: Section, metric: Metric) -> str | None:
    """The remedy that margins in a table are over: ``default``, or else the weakest; None where there is but one."""
    names = list(section.histories)
    if len(names) < 2 or "default" in names:
        return "default" if len(names) > 1 else None
    medians = {name: _median(section.histories[name], metric) for name in names}
    return min(names, key=lambda name: medians[name] if metric.direction == "max" else -medians[name])


def verdict(scores: Sequence[float], task: Task, chance: float | None, diverged: int = 0) -> str:
    """Whether a remedy learns, over its seeds."""
    apart = f"; diverged on {diverged}" if diverged else ""
    if task.chance is None or chance is None:
        return apart.removeprefix("; ")
    learned = sum(learns(score, task, chance) for score in scores)
    if learned == len(scores):
        return "learns" + apart
    return (f"learns on {learned} of {len(scores)}" if learned else "does not learn") + apart


def reading(q: Change, c: Change, *, learned: bool) -> str:
    """What becomes of the signal after the last hidden layer."""
    if not q[1] < max(100.0, 100 * q[0]):
        return "grows out of its range"
    if q[1] < 0.01 * min(q[0], 1.0):
        return "shrinks away"
    if c[1] > 0.99:
        return "inputs look alike" + (", as at the start" if c[0] > 0.99 else " at the end")
    return "inputs come apart" if learned and c[1] < c[0] - 0.05 else "keeps inputs apart"


def _line(
    section: Section,
    task: Task,
    chance: float | None,
    side: Contender,
    against: Contender | None,
    plain: Contender | None,
) -> Line:
    runs, remedy, metric = section.histories[side.name], section.remedies[side.name], task.metric
    scores = tuple(counted(run, metric) for run in runs)
    q, c = _signal(runs, "q"), _signal(runs, "c")
    learned = any(learns(score, task, chance) for score in scores)
    first = next((run.predicted for run in runs if run.predicted and run.predicted.c), None)
    return Line(
        remedy=side.name,
        what=remedy.title + (f", otherwise as {remedy.baseline}" if remedy.baseline else ""),
        scores=scores,
        median=_median(runs, metric),
        margin=margin(side, against, metric) if against and against is not side else None,
        verdict=verdict(scores, task, chance, sum(run.status == "diverged" for run in runs)),
        step_ms=side.step_ms,
        cost=side.step_ms / plain.step_ms if plain and plain.step_ms and side.step_ms else None,
        entropy=_entropy(runs),
        q=q,
        c=c,
        predicted=first.c[-1] if first else None,
        reading=reading(q, c, learned=learned) if q and c else "",
    )


def _median(runs: Sequence[History], metric: Metric) -> float:
    return median(counted(run, metric) for run in runs)


def _entropy(runs: Sequence[History]) -> Change | None:
    seen = [run.flow for run in runs if run.flow and run.flow[0].entropy and run.flow[-1].entropy]
    return (mean(f[0].entropy[-1] for f in seen), mean(f[-1].entropy[-1] for f in seen)) if seen else None


def _signal(runs: Sequence[History], part: str) -> Change | None:
    """The mean over seeds of q or c after the last hidden layer, at the start and at the end."""

    def last(point: SignalPoint) -> list[float]:
        return point.q if part == "q" else point.c

    seen = [run.signal for run in runs if run.signal and last(run.signal[0]) and last(run.signal[-1])]
    return (mean(last(s[0])[-1] for s in seen), mean(last(s[-1])[-1] for s in seen)) if seen else None
