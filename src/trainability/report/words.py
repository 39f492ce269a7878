"""Scores, margins and answers in words, the same in the terminal and on the page."""

from dataclasses import dataclass
from math import isfinite

from trainability.report.answer import Answer, Margin
from trainability.tasks import Metric


@dataclass(frozen=True)
class Fact:
    """A figure of the answer: what it is, the figure, and how to read it."""

    key: str
    label: str
    value: str
    note: str = ""


def better(metric: Metric) -> str:
    """The word for better."""
    return "higher" if metric.direction == "max" else "lower"


def worse(metric: Metric) -> str:
    """The word for worse."""
    return "lower" if metric.direction == "max" else "higher"


def gain(found: Margin, metric: Metric) -> str:
    """``3.2 points higher``."""
    if not isfinite(found.gain):
        return "not finite"
    return f"{metric.gap(abs(found.gain))} {better(metric) if found.gain >= 0 else worse(metric)}"


def versus(found: Margin, metric: Metric) -> str:
    """``3.2 points higher than he``."""
    finite = isfinite(found.gain)
    return f"{gain(found, metric)} than {found.rival}" if finite else f"by no finite margin over {found.rival}"


def signed(found: Margin, metric: Metric) -> str:
    """``+3.2``, positive where the one is better."""
    return metric.number(found.gain, "brief", "+") if isfinite(found.gain) else ""


def interval(found: Margin, metric: Metric, *, unit: bool = True) -> str:
    """``+0.3 to +6.1 points``, positive where the one is better; nothing where no interval is told."""
    if found.interval is None:
        return ""
    low, high = (metric.number(end, "brief", "+") for end in found.interval)
    return f"{low} to {high} {metric.difference if unit else ''}".rstrip()


def against(found: Margin, metric: Metric) -> str:
    """A margin in one sentence.

    >>> lead = Margin("he", 3.25, (0.5, 6.0), 3, separate=False)
    >>> against(lead, Metric("accuracy", "max", ..., 0.0, difference="points", forms=(".2f", ".1f", ".0f")))
    '3.2 points higher than he (95 % interval +0.5 to +6.0 points, 3 seeds)'
    """
    words = versus(found, metric)
    if found.verdict == "few seeds":
        return f"{words} (fewer than 3 seeds show nothing)"
    if found.interval is None:
        return f"{words} (a run has no finite score)"
    words += f" (95 % interval {interval(found, metric)}, {found.seeds} seeds)"
    return words + (": no difference is shown" if found.verdict == "no difference" else "")


def headline(found: Answer, metric: Metric) -> str:
    """The answer in a sentence."""
    at = f" ({found.place})" if found.place else ""
    score = f"{metric.show(found.score, 'brief')} {found.part} {metric.name}"
    if found.learned == 0 and found.chance is not None:
        level = metric.show(found.chance, "brief")
        if found.margin is None:
            return f"{found.remedy} does not train: {score}, where chance is {level}."
        return f"None of them trains: the best, {found.remedy}{at}, ends at {score}, where chance is {level}."
    some = ""
    if found.learned is not None and found.learned < len(found.scores):
        some = f" on {found.learned} of {len(found.scores)} seeds"
    if found.margin is None:
        if found.learned is None:
            return f"{found.remedy}{at} ends at {score}."
        return f"{found.remedy}{at} trains{some}: {score}."
    lead = "" if found.learned is None else f" trains{some}"
    ending = ": no difference is shown." if found.margin.verdict == "no difference" else "."
    if found.margin.gain < 0:
        ending = f" (it was chosen on the {found.chosen_on} part){ending}"
    return f"{found.remedy}{at}{lead}: {score}, in the mean {versus(found.margin, metric)}{ending}"


def facts(found: Answer, metric: Metric, *, kind: str = "remedy", tested: float | None = None) -> list[Fact]:
    """The figures that a reader looks for first: which, how good, by how much, how sure, at what cost."""
    values = list(found.scores.values())
    low, high = (metric.number(value, "brief") for value in (min(values), max(values)))
    seeds = f"{len(values)} seeds" if len(values) > 1 else "one seed"
    name = f"{found.part} {metric.name}".capitalize()
    told = [
        Fact("remedy", kind.capitalize(), found.remedy, found.place),
        Fact("score", name, metric.show(found.score, "brief"), f"{found.middle}; {low} to {high} over {seeds}"),
    ]
    if tested is not None:
        told.append(Fact("tested", f"Test {metric.name}", metric.show(tested, "brief"), "had no part in the choice"))
    if found.margin is None and (ends := found.interval):
        shown_ends = " to ".join(metric.number(end, "brief") for end in ends)
        told.append(
            Fact("interval", "95 % interval", f"{shown_ends} {metric.unit}".rstrip(), f"of the mean of {seeds}")
        )
    if (lead := found.margin) is not None:
        told.append(Fact("margin", "Margin", gain(lead, metric), f"than {lead.rival}, the next, in the mean"))
        shown = interval(lead, metric) or "none"
        few = "from 3 seeds on" if lead.verdict == "few seeds" else f"positive where better; over {lead.seeds} seeds"
        told.append(Fact("interval", "95 % interval of the gain", shown, few))
        if found.over_default is not None and found.over_default.rival != lead.rival:
            base = found.over_default
            told.append(Fact("default", "Over default", gain(base, metric), interval(base, metric)))
    if found.cost is not None:
        beside = "the plain network" if found.plain == "default" else f"that of {found.plain}, the quickest"
        beside = "it is the quickest" if found.plain == found.remedy != "default" else beside
        told.append(Fact("cost", "Cost per step", f"{found.cost:.2f} ×", f"{beside}; {found.step_ms:.1f} ms"))
    elif found.step_ms is not None:
        told.append(Fact("cost", "Cost per step", f"{found.step_ms:.1f} ms", "and network"))
    return told
