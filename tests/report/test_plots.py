"""plotly's script, and figures as a page holds them."""

import json
from importlib.resources import files
from itertools import pairwise

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from plotly.subplots import make_subplots

from trainability.report import plots


def test_the_script_is_the_one_that_plotly_writes_for():
    assert get_plotlyjs_version() == plots.BUNDLE, "fetch plotly.js-cartesian-dist-min of that version"
    assert f"v{plots.BUNDLE}" in plots.script()[:200]
    assert "MIT" in (files("trainability.report") / "plotly" / "LICENSE").read_text()


def test_another_plotly_brings_its_own_script(monkeypatch):
    monkeypatch.setattr(plots, "get_plotlyjs_version", lambda: "99.0.0")
    plots.script.cache_clear()
    try:
        assert plots.script() == get_plotlyjs()
    finally:
        plots.script.cache_clear()


def test_a_figure_is_json_that_ends_no_script_and_keeps_its_numbers():
    figure = go.Figure(go.Scatter(x=[1, 2], y=[0.123456789, float("nan")], name="</script><b>"))
    text = plots.plot("title", "look", figure).json
    assert "<" not in text
    (trace,) = json.loads(text)["data"]
    assert trace["name"] == "</script><b>"
    assert trace["x"] == [1, 2]
    assert trace["y"] == [pytest.approx(0.123456789, rel=1e-3), None]


def test_panels_lie_below_one_another_on_a_narrow_screen():
    figure = make_subplots(rows=2, cols=2, subplot_titles=list("abcd"))
    for number in range(4):
        figure.add_scatter(y=[1, 2], row=number // 2 + 1, col=number % 2 + 1)
    changes = json.loads(plots.plot("title", "look", figure).json)["narrow"]
    assert all(changes[f"xaxis{n}.domain"] == [0, 1] for n in ("", 2, 3, 4))
    spans = [changes[f"yaxis{n}.domain"] for n in ("", 2, 3, 4)]
    assert all(low < high for low, high in spans)
    assert all(below[1] < above[0] for above, below in pairwise(spans))
