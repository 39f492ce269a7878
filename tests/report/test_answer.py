"""The answer: which is chosen, by how much it is ahead, what the seeds show, at what cost."""

from math import inf, nan
from statistics import mean, median

import pytest
from scipy import stats

from comparisons import LOSS, compared, history
from trainability.report.answer import Contender, answer, final, margin
from trainability.report.narrative import narrate
from trainability.report.words import facts, headline
from trainability.tasks import Loss, Task, task

ACCURACY = task("classification").metric
SQUARES = Task("squares", Loss(..., "squared error", "SE"), (LOSS,))


def pairs(*values: float) -> list[tuple[float, float]]:
    """The same score on validation and test."""
    return [(value, value) for value in values]


def test_the_interval_is_that_of_a_paired_t_test():
    one, other = [71.0, 64.5, 80.25, 77.0], [70.0, 61.0, 72.5, 79.0]
    found = margin(Contender("a", {}, dict(enumerate(one))), Contender("b", {}, dict(enumerate(other))), ACCURACY)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.gain == pytest.approx(mean(one) - mean(other))


def test_seeds_are_paired_by_their_number_and_others_are_left_out():
    one, other = Contender("a", {}, {0: 50.0, 7: 60.0, 3: 70.0}), Contender("b", {}, {3: 60.0, 7: 55.0, 9: 0.0})
    found = margin(one, other, ACCURACY)
    assert (found.seeds, found.gain, found.interval) == (2, 7.5, None)
    assert margin(one, Contender("c", {}, {8: 1.0}), ACCURACY) is None


@pytest.mark.parametrize(
    ("best", "next_best", "verdict", "separate"),
    [
        ((90.0, 91.0, 92.0), (80.0, 81.5, 82.0), "shown", True),
        ((90.0, 70.0, 95.0), (80.0, 85.0, 75.0), "no difference", False),
        ((90.0, 90.0, 90.0), (90.0, 90.0, 90.0), "no difference", False),
        ((90.0, 91.0), (50.0, 51.0), "few seeds", True),
    ],
)
def test_what_the_seeds_show(best, next_best, verdict, separate):
    found = answer(compared({"he": pairs(*best), "default": pairs(*next_best)}))
    assert (found.margin.verdict, found.margin.separate) == (verdict, separate)
    assert ("default" in found.ties) == (verdict == "no difference")


def test_the_best_is_chosen_on_validation_and_told_by_the_test_split():
    found = answer(compared({"he": [(80.0, 60.0), (81.0, 61.0)], "tat": [(70.0, 99.0), (71.0, 99.0)]}))
    assert (found.remedy, found.score, found.part, found.chosen_on) == ("he", 60.5, "test", "validation")
    assert found.margin.gain == pytest.approx(-38.5)


def test_without_a_test_split_validation_is_told_and_without_validation_the_test_split_chooses():
    found = answer(compared({"he": [(80.0, None)] * 3, "default": [(40.0, None)] * 3}))
    assert (found.remedy, found.score, found.part) == ("he", 80.0, "validation")
    assert "validation accuracy" in headline(found, ACCURACY)
    found = answer(compared({"he": [(None, 80.0)] * 3, "default": [(None, 40.0)] * 3}))
    assert (found.remedy, found.part, found.chosen_on) == ("he", "test", "test")
    assert final(history("he", 0, 70.0, None)) == 70.0


def test_less_is_better_where_the_metric_says_so():
    found = answer(compared({"he": pairs(0.5, 0.4, 0.6), "default": pairs(2.5, 2.3, 2.7)}, own=SQUARES, chance=None))
    assert (found.remedy, found.learned, found.chance) == ("he", None, None)
    assert found.margin.gain == pytest.approx(2.0)
    assert found.margin.verdict == "shown"
    assert "2 lower than default" in headline(found, LOSS)


@pytest.mark.parametrize("value", [nan, inf])
def test_a_run_without_a_finite_score_counts_as_the_worst_and_has_no_interval(value):
    scores = {"he": pairs(0.5, 0.4, 0.6), "default": pairs(2.5, value, 2.7)}
    found = answer(compared(scores, own=SQUARES, chance=None))
    assert (found.remedy, found.margin.verdict) == ("he", "not finite")
    found = answer(compared({"he": pairs(90.0, 91.0, 92.0), "default": pairs(80.0, value, 81.0)}))
    assert found.margin.gain == pytest.approx(mean([10.0, 91.0, 11.0]))


def test_each_remedy_is_weighed_at_the_settings_that_suit_it_best():
    made = compared({"he": pairs(1, 1), "default": pairs(1, 1)}, parameters={"optimizer.lr": [1e-3, 1e-2]})
    values = {("he", 1e-3): 60.0, ("he", 1e-2): 50.0, ("default", 1e-3): 20.0, ("default", 1e-2): 55.0}
    for side in made.sides:
        value = values[side.remedies.name, side.cell.values["optimizer.lr"]]
        side.histories = [history(side.remedies.name, seed, value, value) for seed in range(3)]
    found = answer(made)
    assert (found.remedy, found.score, found.margin.gain) == ("he", 60.0, 5.0)
    assert "0.001" in found.place
    assert "0.01" in found.margin.rival
    assert [answer(made, section).remedy for section in made.sections()] == ["he", "default"]


def test_the_cost_is_over_the_plain_network_or_the_quickest():
    scores = {"he": pairs(90, 91, 92), "default": pairs(10, 11, 12), "tat": pairs(50, 51, 52)}
    found = answer(compared(scores, step_ms={"he": 3.0, "default": 2.0, "tat": 1.0}))
    assert (found.cost, found.plain) == (1.5, "default")
    del scores["default"]
    found = answer(compared(scores, step_ms={"he": 3.0, "tat": 1.0}))
    assert (found.cost, found.plain) == (3.0, "tat")
    assert answer(compared(scores)).cost is None


def test_remedies_that_do_not_train_are_not_praised():
    found = answer(compared({"he": pairs(11, 12, 13), "default": pairs(9, 10, 11)}, chance=10.0))
    assert found.learned == 0
    assert "None of them trains" in headline(found, ACCURACY)
    assert answer(compared({"he": [(None, None)]})) is None


def test_the_facts_are_those_of_the_scores():
    he, default = [80.0, 85.0, 90.0], [10.0, 12.0, 11.0]
    found = answer(compared({"he": pairs(*he), "default": pairs(*default)}, step_ms={"he": 3.0, "default": 2.0}))
    told = {fact.key: fact.value for fact in facts(found, ACCURACY)}
    low, high = stats.ttest_rel(he, default).confidence_interval(0.95)
    assert told["remedy"] == "he"
    assert told["score"] == f"{median(he):.1f} %"
    assert told["margin"] == f"{mean(he) - mean(default):.1f} points higher"
    assert told["interval"] == f"{low:+.1f} to {high:+.1f} points"
    assert told["cost"] == "1.50 ×"


def test_what_authors_claim_stands_beside_what_was_seen():
    from trainability.training.history import LossPoint

    made = compared({"batchnorm": pairs(50.0), "ic": pairs(51.0)})
    for run in made.histories:
        run.losses = [LossPoint(step, 1.0) for step in range(3)]
    words = " ".join(sentence for _, sentences in narrate(made) for sentence in sentences)
    (claim,) = {side.remedies.claim for side in made.sides if side.remedies.name == "ic"}
    assert claim
    assert claim in words
    assert "batchnorm" in words.partition(claim)[2]
