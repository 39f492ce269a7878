"""A comparison in sentences: which remedy rescued what, and how far the seeds spread."""

from itertools import pairwise
from statistics import mean, median

from trainability.diagnosis.verdict import SILENT
from trainability.experiments.comparison import Comparison, Section
from trainability.remedies.registry import Combination
from trainability.tasks import Metric, Task
from trainability.training.history import History


def scores(runs: list[History]) -> list[float]:
    """Main metric on the test split at the end, one per seed."""
    return [run.scores[-1].test for run in runs]


def spread(values: list[float], metric: Metric) -> str:
    """``76.6 % (median; 71.6 to 90.5 over 5 seeds)``."""
    if len(values) == 1:
        return f"{metric.show(values[0])} (one seed)"
    if max(values) - min(values) <= metric.resolution:
        return f"{metric.show(values[0])} on each of {len(values)} seeds"
    low, high = (metric.number(value, "brief") for value in (min(values), max(values)))
    return f"{metric.show(median(values), 'brief')} (median; {low} to {high} over {len(values)} seeds)"


def narrate(comparison: Comparison, *, brief: bool = False) -> list[tuple[str, list[str]]]:
    """Return a title and paragraphs for every depth and learning rate: what stands out, and one per remedy.

    Brief ones leave out what becomes of the signal, what is claimed, and where a spread comes from.
    """
    stories = []
    for section in comparison.sections():
        if not section.histories:
            continue
        runs = [run for group in section.histories.values() for run in group]
        unfinished = [run.epochs for run in runs if run.status in ("training", "interrupted", "waiting")]
        sentences = _section(section, comparison.task, comparison.chance, brief)
        if unfinished:
            sentences.insert(
                0,
                f"{len(unfinished)} of {len(runs)} runs were interrupted, the earliest after {min(unfinished)} of "
                f"{comparison.recipe.epochs} epochs: what follows is of that moment and not of the end.",
            )
        stories.append((section.title, sentences))
    return stories


def _section(section: Section, task: Task, chance: float | None, brief: bool) -> list[str]:
    metric, paragraphs = task.metric, []
    arms = section.histories
    for name, runs in arms.items():
        sentences: list[str] = []
        values = scores(runs)
        side = section.remedies[name]
        otherwise = "" if side.baseline is None else f", otherwise as {side.baseline}"
        subject = f"{name} ({side.title}{otherwise})"
        start = [run.flow[0].entropy[-1] for run in runs]
        signal = f"At the start its last hidden layer carries {mean(start):.2g} nats."
        stuck = sum(not _learns(value, task, chance) for value in values)
        if task.chance is None or chance is None:
            sentences.append(f"{subject} ends at {spread(values, metric)}. {signal}")
        elif stuck == len(values):
            sentences.append(
                f"{subject} does not learn: {spread(values, metric)}, where {task.chance.answer} gives "
                f"{metric.show(chance)}. {signal}"
            )
        elif stuck:
            sentences.append(
                f"{subject} learns on some seeds only: {spread(values, metric)}; {stuck} of {len(values)} stay near "
                f"chance. {signal}"
            )
        else:
            sentences.append(f"{subject} learns: {spread(values, metric)}. {signal}")
        if any(run.status == "diverged" for run in runs):
            sentences.append(
                f"{name} diverged on seeds {', '.join(str(r.seed) for r in runs if r.status == 'diverged')}."
            )
        if side.baseline in arms:
            sentences.append(_against(name, values, side.baseline, scores(arms[side.baseline]), metric))
        if side.loss:
            sentences += _revival(name, runs)
        if not brief:
            sentences += [
                *_claimed(name, arms, side),
                *_signal(name, runs, learns=stuck < len(values)),
                *(_why_spread(name, runs, task) if stuck < len(values) else []),
            ]
        paragraphs.append(" ".join(sentences))
    best = metric.best(arms, key=lambda name: median(scores(arms[name])))
    return [f"Strongest here: {best}, {spread(scores(arms[best]), metric)}." + _seeds_warning(arms), *paragraphs]


def _learns(value: float, task: Task, chance: float | None) -> bool:
    """Return whether a score is better than chance, or there is no level of chance."""
    return task.chance is None or chance is None or task.metric.exceeds(value, chance, task.chance.margin)


def _against(name: str, values: list[float], base: str, base_values: list[float], metric: Metric) -> str:
    gain = median(values) - median(base_values)
    signed, size = metric.gap(gain, sign="+"), metric.gap(abs(gain))
    if min(len(values), len(base_values)) < 3:
        return f"Against {base} that is {signed}."
    if min(values) > max(base_values):
        return f"Every seed of {name} is above every seed of {base}, by {size} in the median."
    if max(values) < min(base_values):
        return f"Every seed of {name} is below every seed of {base}, by {size} in the median."
    return f"The seeds of {name} and {base} overlap (medians differ by {signed}): no difference is shown."


def _claimed(name: str, arms: dict[str, list[History]], side: Combination) -> list[str]:
    """The authors' claim for a remedy, beside the training losses that were seen."""
    others = [other for other in (side.baseline, "batchnorm") if other in arms and other != name]
    if not side.claim or not others:
        return []
    other = others[-1]
    seen = []
    for runs in (arms[name], arms[other]):
        ends = [_end(run) for run in runs]
        jumps = mean(_jumps(run) for run in runs)
        seen.append(f"{mean(ends):.3g} ({min(ends):.3g} to {max(ends):.3g}), with jumps of {jumps:.2g} between records")
    return [
        f"Claimed of {name}: {side.claim}. Seen: over the seeds its training loss ends at {seen[0]}; that of {other} "
        f"at {seen[1]}. (The first is a loss with dropout.)"
    ]


def _end(run: History) -> float:
    """Mean training loss over the last tenth of the records."""
    losses = [point.loss for point in run.losses]
    return mean(losses[-max(1, len(losses) // 10) :])


def _jumps(run: History) -> float:
    """Mean difference between successive records of the training loss in the second half."""
    losses = [point.loss for point in run.losses][len(run.losses) // 2 :]
    return mean([abs(a - b) for a, b in pairwise(losses)] or [0.0])


def _revival(name: str, runs: list[History]) -> list[str]:
    """The step at which the last hidden layer first carried information, for runs that began without any."""
    woke: dict[int, int | None] = {}
    for run in runs:
        if run.flow[0].entropy[-1] < SILENT:
            woke[run.seed] = next((point.step for point in run.flow if point.entropy[-1] >= SILENT), None)
    if not woke:
        return []
    never = [seed for seed, step in woke.items() if step is None]
    steps = {seed: step for seed, step in woke.items() if step is not None}
    sentences = []
    if steps:
        when = ", ".join(f"seed {seed} by step {step}" for seed, step in steps.items())
        sentences.append(
            f"In {name} the term opens a network that began silent; its last hidden layer first carries {SILENT} "
            f"nats: {when}."
        )
    if never:
        sentences.append(
            f"On {'seed' if len(never) == 1 else 'seeds'} {', '.join(map(str, never))} {name} did not open it."
        )
    return sentences


def _signal(name: str, runs: list[History], learns: bool) -> list[str]:
    """Size and angle of the signal after the last hidden layer, as means over the seeds."""
    seen = [run for run in runs if run.signal and run.signal[0].q and run.signal[-1].q]
    if not seen:
        return []
    q0, q1 = (mean(run.signal[at].q[-1] for run in seen) for at in (0, -1))
    c0, c1 = (mean(run.signal[at].c[-1] for run in seen) for at in (0, -1))
    expected = f" (predicted {p.c[-1]:.3g})" if (p := seen[0].predicted) and p.c else ""
    words = (
        f"After the last hidden layer of {name} the mean square q goes from {q0:.3g} to {q1:.3g} in training, and the "
        f"cosine c between two inputs from {c0:.3g}{expected} to {c1:.3g}"
    )
    if not q1 < max(100.0, 100 * q0):
        return [words + ": the signal grows out of the range that it was set up for."]
    if q1 < 0.01 * min(q0, 1.0):
        return [words + ": the signal shrinks away."]
    if c1 > 0.99:
        return [words + ": all inputs look alike there" + (", as they did at the start." if c0 > 0.99 else ".")]
    return [words + (": inputs come apart." if learns and c1 < c0 - 0.05 else ".")]


def _why_spread(name: str, runs: list[History], task: Task) -> list[str]:
    """A wide spread of the seeds, and whether the runs were still moving when training ended."""
    values, metric = scores(runs), task.metric
    apart = max(values) - min(values)
    if task.chance is None or len(runs) < 2 or apart < task.chance.margin or len(runs[0].scores) < 2:
        return []
    moves = [run.scores[-1].test - run.scores[-2].test for run in runs]
    return [
        f"The seeds of {name} lie {metric.gap(apart, 'rough')} apart; in the last epoch alone "
        f"they moved by {metric.number(min(moves), 'brief', '+')} to {metric.gap(max(moves), sign='+')}"
        + (
            ", so the spread is of networks that had not settled."
            if max(map(abs, moves)) > 0.4 * task.chance.margin
            else "."
        )
    ]


def _seeds_warning(arms: dict[str, list[History]]) -> str:
    fewest = min(len(runs) for runs in arms.values())
    return " Fewer than three seeds are an impression, not a result." if fewest < 3 else ""
