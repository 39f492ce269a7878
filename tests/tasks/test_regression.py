"""Regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from refusals import refused
from trainability.errors import ArgumentError
from trainability.tasks import task
from trainability.tasks.scoring import Evaluation


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs near targets of unequal means and spreads, ``(50, ...)``."""
    generator = torch.Generator().manual_seed(0)
    size = (50, *shape)
    targets = torch.randn(size, generator=generator) * (1 + torch.arange(size[-1])) + 3
    return targets + 0.7 * torch.randn(size, generator=generator), targets


def scores(outputs: torch.Tensor, targets: torch.Tensor, at: tuple[int, ...] = (20, 31)) -> dict[str, float]:
    """Metrics of one network from batches that end at these samples."""
    evaluation = Evaluation(task("regression"), 1)
    for part in zip(*(t.tensor_split(at) for t in (outputs, targets)), strict=True):
        evaluation.update(*(t.unsqueeze(0) for t in part))
    return {name: values[0] for name, values in evaluation.values().items()}


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_metrics_are_those_of_scikit_learn(shape):
    outputs, targets = pair(*shape)
    found = scores(outputs, targets)
    assert list(found) == ["mse", "mae", "r2"]
    assert found["mse"] == pytest.approx(metrics.mean_squared_error(targets, outputs), rel=1e-6)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(targets, outputs), rel=1e-6)
    assert found["r2"] == pytest.approx(metrics.r2_score(targets.double(), outputs.double()), rel=1e-9)


def test_r_squared_is_exact_where_targets_are_far_from_0():
    outputs, targets = (t.double() + 1e8 for t in pair(2))
    assert scores(outputs, targets)["r2"] == pytest.approx(metrics.r2_score(targets, outputs), abs=1e-7)


@pytest.mark.parametrize("outputs", [torch.full((50, 2), 2.0), torch.full((50, 2), 2.5)], ids=["met", "missed"])
def test_r_squared_of_an_output_whose_targets_are_all_the_same(outputs):
    targets = torch.full((50, 2), 2.0)
    targets[:, 1] = torch.arange(50)
    expected = metrics.r2_score(targets.double(), outputs.double())
    assert scores(outputs, targets)["r2"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "plain"), [("squared", nn.MSELoss()), ("absolute", nn.L1Loss()), ("huber", nn.HuberLoss())]
)
def test_losses_are_those_of_torch(name, plain):
    outputs, targets = pair(3)
    found = task("regression", loss=name).losses(outputs.unsqueeze(0), targets.unsqueeze(0))
    torch.testing.assert_close(found, plain(outputs, targets).unsqueeze(0))


@pytest.mark.parametrize(("of_outputs", "of_targets"), [((1,), ()), ((), (1,)), ((4, 1), (4,))])
def test_an_axis_of_one_is_never_broadcast(of_outputs, of_targets):
    outputs, targets = pair(*of_outputs)
    given = targets.reshape(50, *of_targets)
    regression = task("regression")
    regression.check(outputs, given)
    expected = (outputs - targets).square().mean()
    torch.testing.assert_close(regression.losses(outputs.unsqueeze(0), given.unsqueeze(0)), expected.unsqueeze(0))
    assert scores(outputs, given)["r2"] == pytest.approx(scores(outputs, targets)["r2"])


def test_counts_and_half_precision_are_scored_in_float32():
    outputs, targets = pair()
    counts = targets.round().long()
    found = task("regression").losses(outputs.bfloat16().unsqueeze(0), counts.unsqueeze(0))
    torch.testing.assert_close(found, (outputs.bfloat16().float() - counts).square().mean().unsqueeze(0))


@pytest.mark.parametrize(
    ("outputs", "targets", "code"),
    [
        (torch.zeros(8, 3), torch.zeros(8), "outputs"),
        (torch.zeros(8), torch.zeros(8, 3), "outputs"),
        (torch.zeros(8, 2, 3), torch.zeros(8, 3, 2), "outputs"),
        (torch.zeros(4, 1), torch.zeros(8, 1), "outputs"),
        (torch.zeros(8), {"y": torch.zeros(8)}, "targets"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, targets, code):
    with refused(ArgumentError, code):
        task("regression").check(outputs, targets)


def test_chance_is_the_error_of_the_mean_of_the_targets():
    _, targets = pair(3)
    chance = task("regression").chance
    constant = np.broadcast_to(targets.numpy().mean(0), targets.shape)
    assert chance.of(targets) == pytest.approx(metrics.mean_squared_error(targets, constant), rel=1e-6)
    assert chance.least_gain(4.0) == pytest.approx(0.2)


def test_a_loss_that_there_is_not_is_refused():
    with refused(ArgumentError, "unknown-choice", "squared"):
        task("regression", loss="sqared")
