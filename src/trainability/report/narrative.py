"""A comparison in sentences: the answer, and what stands out that a table does not show."""

from itertools import pairwise
from statistics import mean

from trainability.diagnosis.verdict import SILENT
from trainability.experiments.comparison import Comparison, Section
from trainability.remedies.registry import Combination
from trainability.report.answer import answer, contender, counted, learns, margin, score_of
from trainability.report.words import against, headline
from trainability.tasks import Task
from trainability.training.history import History


def narrate(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return a title and sentences for every depth and learning rate: the answer, how sure it is, and remarks."""
    stories = []
    for section in comparison.sections():
        if found := answer(comparison, section):
            first = [headline(found, comparison.task.metric), found.certainty]
            stories.append((section.title, [*first, *remarks(section, comparison)]))
    return stories


def remarks(section: Section, comparison: Comparison) -> list[str]:
    """What stands out: runs that did not end well, what a remedy adds to its baseline, silence that was broken."""
    task, arms = comparison.task, section.histories
    runs = [run for group in arms.values() for run in group]
    unfinished = [run.epochs for run in runs if run.status in ("training", "interrupted", "waiting")]
    sentences = []
    if unfinished:
        sentences.append(
            f"{len(unfinished)} of {len(runs)} runs were interrupted, the earliest after {min(unfinished)} of "
            f"{comparison.recipe.epochs} epochs: what is said is of that moment and not of the end."
        )
    for name, group in arms.items():
        side = section.remedies[name]
        if diverged := [str(run.seed) for run in group if run.status == "diverged"]:
            sentences.append(f"{name} diverged on {_seeds(diverged)}.")
        if side.baseline in arms and side.baseline != "default":
            one, base = (contender(each, arms[each], task.metric) for each in (name, side.baseline))
            if found := margin(one, base, task.metric):
                sentences.append(f"{name} is {against(found, task.metric)}.")
        sentences += [
            *(_revival(name, group) if side.loss else []),
            *_claimed(name, arms, side),
        ]
    moving = [words for name, group in arms.items() for words in _unsettled(name, group, task, comparison.chance)]
    return [*sentences, *([f"Not settled at the end: {'; '.join(moving)}."] if moving else [])]


def _seeds(seeds: list[str]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}"


def _claimed(name: str, arms: dict[str, list[History]], side: Combination) -> list[str]:
    """The authors' claim for a remedy, beside the training losses that were seen."""
    others = [other for other in (side.baseline, "batchnorm") if other in arms and other != name]
    if not side.claim or not others:
        return []
    other = others[-1]
    seen = []
    for runs in (arms[name], arms[other]):
        ends = [_end(run) for run in runs if run.losses]
        if not ends:
            return []
        seen.append(f"{mean(ends):.3g}, with jumps of {mean(map(_jumps, runs)):.2g} between records")
    return [
        f"Claimed of {name}: {side.claim}. Seen: its training loss ends at {seen[0]} (a loss with dropout); that of "
        f"{other} at {seen[1]}."
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
        last = [(point.step, point.entropy[-1]) for point in run.flow if point.entropy]
        if last and last[0][1] < SILENT:
            woke[run.seed] = next((step for step, nats in last if nats >= SILENT), None)
    steps = {seed: step for seed, step in woke.items() if step is not None}
    never = [str(seed) for seed, step in woke.items() if step is None]
    sentences = []
    if steps:
        when = ", ".join(f"seed {seed} by step {step}" for seed, step in steps.items())
        sentences.append(f"{name} opens a network that began silent: {when} ({SILENT} nats in its last hidden layer).")
    if never:
        sentences.append(f"{name} did not open the silent network on {_seeds(never)}.")
    return sentences


def _unsettled(name: str, runs: list[History], task: Task, chance: float | None) -> list[str]:
    """How far the seeds of what learns lie apart, where they were still moving when training ended."""
    metric = task.metric
    values = [counted(run, metric) for run in runs]
    apart = max(values) - min(values)
    if task.chance is None or not any(learns(value, task, chance) for value in values):
        return []
    least = task.chance.least_gain(chance or 0.0)
    if len(runs) < 2 or apart < least or any(len(run.scores) < 2 for run in runs):
        return []
    moved = max(abs(score_of(run.scores[-1]) - score_of(run.scores[-2])) for run in runs)
    if not moved > 0.4 * least:
        return []
    far, near = metric.number(apart, "rough"), metric.gap(moved, "rough")
    return [f"{name} (seeds {far} apart, moved by up to {near} in the last epoch)"]
