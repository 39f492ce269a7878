"""The history of a run, in JSON and back."""

import json

import pytest

from refusals import code_of
from trainability.dependence.dropout import DropoutEffect
from trainability.dependence.pairs import Independence
from trainability.training.history import (
    FlowPoint,
    Histogram,
    History,
    IndependencePoint,
    InputIndependence,
    LayerDropout,
    LossPoint,
    NeuronPoint,
    ScorePoint,
    SignalPoint,
)


def full() -> History:
    return History(
        "he+lbe",
        depth=2,
        lr=0.01,
        seed=3,
        status="done",
        steps=8,
        epochs=2,
        losses=[LossPoint(4, 2.0, 0.5), LossPoint(8, 1.0)],
        scores=[ScorePoint(4, None, 50.0), ScorePoint(8, 60.0, 70.0, {"test_loss": 1.5})],
        layers=["1", "3"],
        flow=[FlowPoint(0, [0.1, 0.2], [1.0, 1.0]), FlowPoint(8, [0.5, 0.4], [1.0, 2.0])],
        signal=[SignalPoint(0, [1.0, 2.0], [0.1, 0.2]), SignalPoint(8, [1.0, 3.0], [0.3, 0.4])],
        predicted=SignalPoint(0, [1.0, 1.0], [0.5, 0.6]),
        alpha=[0.5, 0.4],
        neurons=[NeuronPoint(0, [Histogram(1, "0", -1.0, 1.0, [3.0, 4.0], 0.7)])],
        independence=[IndependencePoint(0, [InputIndependence(2, "2", Independence(0.1, 0.2, 0.3, 4, 5))])],
        dropout=LayerDropout("ic", [DropoutEffect(0.5, 0.0, 0.5, 0.01, 0.5, 0.25, 0.01, 0.2, 0.02, 0.25)]),
        step_ms=1.5,
    )


def test_a_history_comes_back_from_json_as_it_was():
    history, again = full(), History("", 0, 0.0, 0)
    again.restore(json.loads(json.dumps(history.to_dict())))
    assert again == history
    assert type(again.dropout.effects[0]) is DropoutEffect


def test_the_flat_result_is_that_of_the_last_points():
    result = full().result()
    assert list(result)[:3] == ["remedy", "seed", "status"]
    wanted = {"test_accuracy": 70.0, "val_accuracy": 60.0, "test_loss": 1.5, "train_loss": 1.0, "q_last": 3.0}
    wanted |= {"entropy_first": 0.5, "entropy_lowest": 0.4, "entropy_last": 0.4, "entropy_last_at_start": 0.2}
    assert {name: result[name] for name in wanted} == wanted
    assert History("he", 2, 0.1, 0).result()["test_accuracy"] is None


@pytest.mark.parametrize("name", ["scores", "neurons", "dropout", "seed"])
def test_what_is_no_history_is_refused_and_nothing_of_it_taken(name):
    kept, history = {**full().to_dict(), name: "x"}, History("", 0, 0.0, 0)
    assert code_of(lambda: history.restore(kept)) == "state-damaged"
    assert history == History("", 0, 0.0, 0)
