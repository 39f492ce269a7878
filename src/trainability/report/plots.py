"""Figures as a page holds them: plotly's script once, each figure as rounded JSON, drawn when it comes into sight."""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs, get_plotlyjs_version

BUNDLE = "4.1.1"  # of plotly.js, in plotly/, with its license
_DIGITS = 4
_PANEL = 270  # pixels of a panel on a narrow screen


@dataclass(frozen=True)
class Plot:
    """A figure with its title, what to see in it, and how it was measured."""

    title: str
    look: str
    json: Markup
    height: int
    how: str = ""

    @property
    def anchor(self) -> str:
        """The title as part of an address."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def plot(title: str, look: str, figure: Figure, how: str = "") -> Plot:
    """A figure as the templates take it."""
    found = json.loads(figure.to_json())
    found["layout"].pop("template", None)  # the page has one for all
    height = int(found["layout"].get("height") or 380)
    content = {**_rounded(found), "narrow": narrow(found)}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":  # so that nothing in it ends the script that it stands in
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Plot(title, look, Markup(text), height, how)


@cache
def script() -> Markup:
    """plotly.js: the part for plane figures that comes with the package, or all of it for another plotly.

    What plotly writes is for the plotly.js of its own major version.
    """
    if get_plotlyjs_version().partition(".")[0] != BUNDLE.partition(".")[0]:
        return Markup(get_plotlyjs())
    return Markup((files("trainability.report") / "plotly" / "plotly-cartesian.min.js").read_text("utf-8"))


def narrow(figure: dict[str, Any]) -> dict[str, Any]:
    """The changes of the layout that put panels one below the other, as plotly's ``relayout`` takes them."""
    layout = figure["layout"]
    panels = list(dict.fromkeys(trace.get("xaxis", "x")[1:] for trace in figure["data"]))
    if len(panels) < 2 or "grid" in layout:
        return {}
    panels.sort(key=lambda number: int(number or 1))
    share, height = 1 / len(panels), _PANEL * len(panels)
    changes: dict[str, Any] = {"height": height + 120, "legend.y": 1 + 30 / height, "margin.l": 55, "margin.r": 10}
    if "coloraxis" in layout:
        changes["coloraxis.colorbar"] = {"thickness": 10, "lenmode": "pixels", "len": 200, "y": 1, "yanchor": "top"}
    for place, number in enumerate(panels):
        top = 1 - place * share
        changes |= {
            f"xaxis{number}.domain": [0, 1],
            f"yaxis{number}.domain": [top - share + 70 / height, top - 15 / height],
            f"xaxis{number}.showticklabels": True,
            f"yaxis{number}.showticklabels": True,
        }
        if place < len(layout.get("annotations", [])):
            changes |= {f"annotations[{place}].x": 0.5, f"annotations[{place}].y": top - 15 / height}
    return changes


def _rounded(value: Any) -> Any:
    """Numbers with as many digits as a figure can show."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return {key: _rounded(each) for key, each in value.items()} if isinstance(value, dict) else value
