"""The answer of an experiment: which remedy, by how much, how sure over seeds, at what cost per step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan, sqrt
from statistics import mean, median, stdev
from typing import Any, Literal

from trainability.experiments.comparison import Comparison, Section
from trainability.tasks import Metric, Task
from trainability.training.history import History, ScorePoint

Part = Literal["test", "validation"]
Middle = Literal["median", "mean"]
FEWEST_SEEDS = 3  # of which an interval is told
_LEVEL = 0.95


def score_of(point: ScorePoint) -> float:
    """The score that is told: that on the test split, or on the validation split where there is no test split."""
    found = point.val if point.test is None else point.test
    return nan if found is None else found


def final(history: History) -> float:
    """The score that is told of a run, at its end; NaN where it has none.

    >>> final(History("he", depth=2, lr=1e-3, seed=0, scores=[ScorePoint(1, val=80.0, test=90.0)]))
    90.0
    """
    return score_of(history.scores[-1]) if history.scores else nan


def part_of(runs: Iterable[History]) -> Part:
    """The split of the scores that are told."""
    return "test" if any(point.test is not None for run in runs for point in run.scores[-1:]) else "validation"


def counted(history: History, metric: Metric) -> float:
    """The score that is told of a run at its end; the worst value of the metric where that is not a number."""
    return value if isfinite(value := final(history)) else metric.worst


@dataclass(frozen=True)
class Contender:
    """A remedy, or a trial of a sweep.

    Args:
        name: of it.
        chosen: scores by seed, by which the best is chosen.
        told: scores by seed, by which it is told how good it is.
        step_ms: milliseconds of a step, where they were taken.
        place: the settings that it is at, where there are several.
    """

    name: str
    chosen: Mapping[int, float]
    told: Mapping[int, float]
    step_ms: float | None = None
    place: str = ""

    @property
    def label(self) -> str:
        """Name and place."""
        return f"{self.name} ({self.place})" if self.place else self.name


@dataclass(frozen=True)
class Margin:
    """How much better one is than another: the mean difference over paired seeds, and what the seeds say of it.

    Runs of the same seed see the same batches, so their difference is freer of chance than the scores are.

    Args:
        rival: the other.
        gain: mean difference, positive where the one is better, whichever way the metric goes.
        interval: of Student's t at 95 percent, from at least three seeds.
        seeds: how many pairs.
        separate: every seed of the one is better than every seed of the other.
    """

    rival: str
    gain: float
    interval: tuple[float, float] | None
    seeds: int
    separate: bool

    @property
    def verdict(self) -> Literal["shown", "reversed", "no difference", "few seeds", "not finite"]:
        """What the seeds show: that the one is better, that it is worse, or neither."""
        if self.seeds < FEWEST_SEEDS:
            return "few seeds"
        if self.interval is None:
            return "not finite"
        low, high = self.interval
        return "shown" if low > 0 else "reversed" if high < 0 else "no difference"


@dataclass(frozen=True)
class Answer:
    """The best of several remedies or trials, or the only one.

    Args:
        remedy: its name.
        place: the settings that it is at, where there are several.
        scores: what is told of it, by seed.
        part: the split of these scores.
        chosen_on: the split that it was chosen on.
        margin: over the runner-up.
        over_default: over the network without a remedy.
        ties: those from which no difference is shown.
        step_ms: milliseconds of its step.
        cost: time of its step over that of ``plain``.
        plain: the network without a remedy, or else the quickest one.
        learned: on how many seeds it is better than chance, where chance is known.
        chance: the score of the best answer that does not look at the input.
        certainty: how sure this is, in words.
        score: the middle of its scores.
        middle: how that is taken.
    """

    remedy: str
    place: str
    scores: Mapping[int, float]
    part: Part
    chosen_on: Part
    margin: Margin | None
    over_default: Margin | None
    ties: tuple[str, ...]
    step_ms: float | None
    cost: float | None
    plain: str | None
    learned: int | None
    chance: float | None
    certainty: str
    score: float
    middle: Middle

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean over its seeds by Student's t at 95 percent."""
        return interval(list(self.scores.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return everything."""
        return asdict(self)


def answer(comparison: Comparison, section: Section | None = None) -> Answer | None:
    """The best of a section, or of them all, each remedy then at the settings that suit it best; None without scores.

    The best is chosen on the validation split, where there is one, and told by the test split, which had no part in it.
    """
    sections = [each for each in (comparison.sections() if section is None else [section]) if each.histories]
    runs = [run for each in sections for group in each.histories.values() for run in group]
    if not runs:
        return None
    chosen_on: Part = "validation" if all(run.val is not None for run in runs) else part_of(runs)
    metric = comparison.task.metric
    places = [
        [
            contender(name, group, metric, chosen_on, each.title if len(sections) > 1 else "")
            for name, group in each.histories.items()
        ]
        for each in sections
    ]
    best: dict[str, Contender] = {}
    for each in (each for found in places for each in found):
        best[each.name] = metric.best([best.get(each.name, each), each], key=lambda one: _middle(one.chosen))
    leader = metric.best(best.values(), key=lambda one: _middle(one.chosen))
    beside = next(found for found in places if leader in found)
    return weigh(
        list(best.values()), metric, part_of(runs), chosen_on, beside, task=comparison.task, chance=comparison.chance
    )


def margin(one: Contender, other: Contender, metric: Metric) -> Margin | None:
    """How much better one is than another on the seeds that they share; None where they share none.

    >>> import math
    >>> accuracy = Metric("accuracy", "max", ..., 0.0)
    >>> he, default = (Contender(n, {}, dict(enumerate(v))) for n, v in (("he", [9, 8, 10]), ("default", [5, 6, 4])))
    >>> found = margin(he, default, accuracy)
    >>> found.gain, found.separate, found.verdict, [round(end, 3) for end in found.interval]
    (4, True, 'no difference', [-0.968, 8.968])
    """
    seeds = [seed for seed in one.told if seed in other.told]
    if not seeds:
        return None
    sign = 1 if metric.direction == "max" else -1
    gains = [sign * (one.told[seed] - other.told[seed]) for seed in seeds]
    worst, best = min(sign * v for v in one.told.values()), max(sign * v for v in other.told.values())
    return Margin(
        other.name if other.place == one.place else other.label, mean(gains), interval(gains), len(seeds), worst > best
    )


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of a mean by Student's t at 95 percent; None of fewer than three values, or of infinite ones."""
    from scipy.special import stdtrit

    middle = mean(values)
    if len(values) < FEWEST_SEEDS or not isfinite(middle):
        return None
    half = float(stdtrit(len(values) - 1, (1 + _LEVEL) / 2)) * stdev(values) / sqrt(len(values))
    return middle - half, middle + half


def weigh(
    contenders: Sequence[Contender],
    metric: Metric,
    part: Part,
    chosen_on: Part,
    beside: Sequence[Contender],
    *,
    task: Task | None = None,
    chance: float | None = None,
    middle: Middle = "median",
) -> Answer:
    """The best of at least one contender.

    Args:
        contenders: one of each name.
        metric: the main one.
        part: the split of what is told.
        chosen_on: the split of what the best is chosen by.
        beside: those at the same settings as the best, to which its time is compared.
        task: tells how much better than chance a network is that has learned.
        chance: the score of the best answer that does not look at the input.
        middle: how the scores of seeds are made one.
    """
    best = metric.best(contenders, key=lambda each: _middle(each.chosen, middle))
    rest = [each for each in contenders if each is not best]
    runner_up = metric.best(rest, key=lambda each: _middle(each.chosen, middle)) if rest else None
    over = margin(best, runner_up, metric) if runner_up else None
    margins = {each.name: found for each in rest if (found := margin(best, each, metric))}
    ties = tuple(found.rival for found in margins.values() if found.verdict == "no difference")
    timed = [each for each in beside if each.step_ms]
    plain = next((each for each in timed if each.name == "default"), None)
    plain = plain or min(timed, key=lambda each: each.step_ms or 0.0, default=None)
    known = task is not None and task.chance is not None and chance is not None
    learned = sum(learns(v, task, chance) for v in best.told.values()) if known and task else None
    return Answer(
        remedy=best.name,
        place=best.place,
        scores=best.told,
        part=part,
        chosen_on=chosen_on,
        margin=over,
        over_default=margins.get("default"),
        ties=ties,
        step_ms=best.step_ms,
        cost=best.step_ms / plain.step_ms if plain and plain.step_ms and best.step_ms and rest else None,
        plain=plain.name if plain and rest else None,
        learned=learned,
        chance=chance if known else None,
        certainty=_certainty(over, ties, len(best.told), learned, part, chosen_on),
        score=_middle(best.told, middle),
        middle=middle,
    )


def learns(value: float, task: Task, chance: float | None) -> bool:
    """Return whether a score is better than chance, or there is no level of chance."""
    return task.chance is None or chance is None or task.metric.exceeds(value, chance, task.chance.least_gain(chance))


def contender(
    name: str, runs: Sequence[History], metric: Metric, chosen_on: Part = "test", place: str = ""
) -> Contender:
    """A remedy by the histories of its seeds."""
    told = {run.seed: counted(run, metric) for run in runs}
    chosen = {run.seed: _choice_of(run, metric) for run in runs} if chosen_on == "validation" else told
    times = [run.step_ms for run in runs if run.step_ms]
    return Contender(name, chosen, told, median(times) if times else None, place)


def _choice_of(run: History, metric: Metric) -> float:
    """A run's part in the choice: the worst value where it diverged."""
    found = run.val
    return metric.worst if found is None or run.status == "diverged" or not isfinite(found) else found


def _middle(scores: Mapping[int, float], middle: Middle = "median") -> float:
    return median(scores.values()) if middle == "median" else mean(scores.values())


def _certainty(
    over: Margin | None, ties: Sequence[str], seeds: int, learned: int | None, part: Part, chosen_on: Part
) -> str:
    if over is None:
        if seeds < FEWEST_SEEDS:
            return "Fewer than 3 seeds show nothing: this is an impression."
        return f"Of {seeds} seeds." if learned is None else f"{learned} of {seeds} seeds are better than chance."
    match over.verdict:
        case "few seeds":
            return "Fewer than 3 seeds show nothing: this is an impression."
        case "not finite":
            return "A run has no finite score, so no interval can be told."
        case "no difference":
            others = "; ".join(ties[:2]) + (f"; and {len(ties) - 2} more" if len(ties) > 2 else "")
            return f"The 95 % interval over {over.seeds} seeds covers 0 for {others}."
        case "reversed":
            return f"On the {part} split {over.rival} is better, though the {chosen_on} split chose this one."
    words = f"A difference is shown: over {over.seeds} seeds the interval leaves out 0"
    words += f", and every seed is better than every seed of {over.rival}." if over.separate else "."
    if part == chosen_on:
        words += f" It was chosen by the same {part} scores, so the margin is somewhat too good."
    return words
