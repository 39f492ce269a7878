"""The page in a browser: its first screen, every figure, wide and narrow, light and dark, printed."""

from pathlib import Path

import pytest
import torch

from conftest import browser
from recipes_for_tests import recipe
from trainability.experiments.run import run

pytestmark = pytest.mark.browser
SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 400, "height": 800}}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    from trainability import cli

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pages")
    small = {"model": {"depth": 3, "width": 16}, "seeds": 3}
    run(recipe(**small, compare={"remedies": ["default", "he+lbe", "ic"]}), folder / "compare")
    run(recipe(**small, remedies="he"), folder / "train")
    words = ["model.depth=2", "model.width=8", "epochs=1", "seeds=3", "remedies=he+lbe"]
    searched = "sweep.parameters={remedies.lbe.alpha: [0.3, 0.6], remedies.lbe.beta: [0.1, 0.2]}"
    assert cli.run(["sweep", *words, searched, "--out", str(folder / "sweep")]) == 0
    return {name: folder / name / "report.html" for name in ("compare", "train", "sweep")}


@pytest.fixture(scope="module")
def chrome():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=browser(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def opened(chrome, path: Path, size: str, scheme: str = "light"):
    messages: list[str] = []
    page = chrome.new_page(viewport=SIZES[size], color_scheme=scheme)
    page.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: messages.append(str(e)))
    page.on("request", lambda r: messages.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto(path.as_uri())
    return page, messages


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["compare", "sweep"])
def test_the_answer_stands_in_the_first_screen(chrome, pages, name, size):
    page, _ = opened(chrome, pages[name], size)
    for key in ("remedy", "score", "margin", "interval", "cost"):
        value = page.locator(f"[data-fact={key}] .value")
        assert value.text_content()
        box = value.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size]["width"]
        assert box["y"] + box["height"] <= SIZES[size]["height"], key
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["compare", "train", "sweep"])
def test_every_figure_is_drawn_without_a_console_error(chrome, pages, name, size):
    page, messages = opened(chrome, pages[name], size, "dark")
    places = page.locator(".plot")
    assert places.count() >= 2
    for number in range(places.count()):
        places.nth(number).scroll_into_view_if_needed()
        places.nth(number).locator(".main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert messages == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_figures_are_legible_on_either_ground(chrome, pages, scheme):
    """Contrast of 4.5 to 1 and more, as WCAG 2.2 asks of text."""
    page, _ = opened(chrome, pages["compare"], "wide", scheme)
    page.locator(".plot .main-svg text").first.wait_for()
    luminance = """(color) => color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)"""
    ground = page.evaluate(f"({luminance})(getComputedStyle(document.body).backgroundColor)")
    for selector, part in (("p", "color"), (".soft", "color"), ("nav a", "color"), (".plot .xtick text", "fill")):
        found = page.locator(selector).first
        ink = found.evaluate(f"(e) => ({luminance})(getComputedStyle(e).{part})")
        low, high = sorted((ink, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    assert (ground > 0.5) == (scheme == "light")
    page.close()


def test_all_figures_are_printed_on_a_light_ground(chrome, pages):
    page, messages = opened(chrome, pages["compare"], "wide", "dark")
    assert page.locator(".main-svg").count() < 2 * page.locator(".plot").count()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.wait_for_function("[...document.querySelectorAll('.plot')].every((place) => place.querySelector('.main-svg'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert messages == []
    page.close()


def test_a_browser_without_the_script_says_so(chrome, pages, tmp_path):
    text = pages["compare"].read_text().replace("root.moduleName = factory();", "", 1)
    (tmp_path / "broken.html").write_text(text.replace("Plotly.newPlot", "Missing.newPlot"))
    page, _ = opened(chrome, tmp_path / "broken.html", "wide")
    page.get_by_text("This figure cannot be drawn in this browser").first.wait_for()
    page.close()
