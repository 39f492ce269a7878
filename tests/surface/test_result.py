"""What a landscape says and draws."""

import json

import pytest
import torch

from refusals import refused
from trainability.errors import ArgumentError
from trainability.surface.plane import PathPoint
from trainability.surface.result import Landscape


@pytest.fixture
def landscape():
    axis = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    loss = torch.tensor([[9.0, 4.0, 5.0], [3.0, 1.0, 2.0], [8.0, 0.5, 7.0]], dtype=torch.float64)
    path = (PathPoint(0.5, -0.5, 0.9), PathPoint(0.0, 0.0, 1.0))
    return Landscape(axis, axis, {"loss": loss, "<b>": -loss}, path, "filter", "frozen", 10, None, "3 points at once")


def test_center_minimum_and_rim(landscape):
    assert landscape.center() == 1
    assert landscape.minimum() == (0.5, 1.0, 0.0)
    assert sorted(landscape.rim().tolist()) == [0.5, 2, 3, 4, 5, 7, 8, 9]
    assert "loss: 1 at the center, minimum 0.5 at a = 1, b = 0; at the rim -0.5 to +8" in str(landscape)
    assert len(repr(landscape)) < 100
    assert "<b>" not in landscape._repr_html_()
    assert json.loads(json.dumps(landscape.to_dict()))["values"]["loss"][2] == [8.0, 0.5, 7.0]
    with refused(ArgumentError, "unknown-choice"):
        landscape.center("los")


def test_figures_show_a_to_the_right_and_the_path(landscape):
    contour, *others = landscape.plot().data
    assert contour.type == "contour"
    assert list(contour.z[1]) == [4.0, 1.0, 0.5]  # b = 0
    assert [*others[0].x, *others[0].y] == [0.5, 0.0, -0.5, 0.0]
    surface = landscape.plot("<b>", "surface")
    assert surface.data[0].type == "surface"
    assert surface.data[0].colorbar.title.text == "&lt;b&gt;"
    with refused(ArgumentError, "unknown-choice"):
        landscape.plot(kind="3d")


def test_what_spans_powers_of_ten_is_drawn_by_its_logarithm(landscape):
    steep = Landscape(**{**vars(landscape), "values": {"loss": 10 ** landscape.values["loss"]}})
    figure = steep.plot().data[0]
    assert figure.colorbar.title.text == "log₁₀ loss"
    assert list(figure.z[0]) == pytest.approx([9, 3, 8])
