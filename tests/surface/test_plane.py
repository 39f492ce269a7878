"""Weights projected onto a plane."""

import math

import pytest
import torch
from torch import nn

from refusals import refused
from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.surface.directions import random_directions, trained_parameters
from trainability.surface.plane import Plane


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()


def test_points_of_the_plane_are_found_exactly_and_others_by_their_share(model):
    first, second = random_directions(model, "tensor", seed=0)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    plane = Plane(trained_parameters(model), [first, second])
    within = {name: w + 0.3 * first[name] - 1.2 * second[name] for name, w in weights.items()}
    found = plane.project(within, "path")
    assert (found.a, found.b, found.explained) == pytest.approx((0.3, -1.2, 1.0), abs=1e-12)

    spanned = torch.stack([torch.cat([d[n].flatten() for n in weights]) for d in (first, second)])
    away = torch.randn(spanned.shape[1], dtype=torch.float64)
    away -= spanned.T @ torch.linalg.lstsq(spanned.T, away).solution  # at a right angle to both
    step = 0.3 * spanned[0] - 1.2 * spanned[1]
    away *= 2 * step.norm() / away.norm()
    parts = away.split([w.numel() for w in weights.values()])
    beside = {n: within[n] + part.view_as(within[n]) for n, part in zip(weights, parts, strict=True)}
    found = plane.project(beside, "path")
    assert (found.a, found.b, found.explained) == pytest.approx((0.3, -1.2, 0.2), abs=1e-12)


def test_the_model_itself_is_the_center_and_a_single_direction_will_do(model):
    first = random_directions(model, "tensor", seed=0)[0]
    plane = Plane(trained_parameters(model), [first, first])
    assert plane.project(model, "path") == plane.project(model.state_dict(), "path")
    assert plane.project(model, "path").explained == 1
    moved = {name: p.detach() + first[name] for name, p in model.named_parameters()}
    found = plane.project(moved, "path")
    assert math.isclose(found.a, 0.5)
    assert math.isclose(found.explained, 1)


def test_weights_of_another_model_are_refused(model):
    plane = Plane(trained_parameters(model), random_directions(model, "filter", seed=0))
    with refused(ArgumentError, "other-weights", match="path, number 2: 0.weight"):
        plane.project(nn.Linear(4, 3), "path, number 2")
    with refused(ArgumentError, "other-weights"):
        plane.project({**model.state_dict(), "0.weight": torch.zeros(4, 3)}, "path")
    with refused(ArgumentTypeError, "wrong-type"):
        plane.project([1.0], "path")
