"""A model, data and a loss of the user's own in a recipe."""

import json
import random
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes_for_tests import last_state, recipe
from refusals import refused
from trainability import cli
from trainability.errors import ConfigError
from trainability.experiments.run import run

MINE = """
import torch
from torch import nn

def make_model(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

def make_data(count=120):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :2].prod(1)

def loss(outputs, targets):
    return (outputs.squeeze(1) - targets).square().mean()
"""
SETTINGS = {"batch_size": 16, "engine": {"compile": "off", "threads": 1}, "probes": 1}


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / f"mine_{random.Random(str(tmp_path)).getrandbits(48)}.py"  # modules are kept by name
    file.write_text(MINE)
    return file


def test_the_readme_shows_the_example(tmp_path):
    root = Path(__file__).parents[2]
    example = (root / "examples" / "my_model.py").read_text()
    assert example.split('"""', 2)[2].strip() in (root / "README.md").read_text()
    made = recipe(
        model=f"{root}/examples/my_model.py:make_model",
        data={"name": f"{root}/examples/my_model.py:make_data"},
        loss=f"{root}/examples/my_model.py:loss",
        **SETTINGS,
    )
    assert run(made, tmp_path / "out").histories[0].status == "done"


def own(file: Path, **changes: object) -> object:
    name = file.name
    content = {
        "model": f"{name}:make_model",
        "data": {"name": f"{name}:make_data"},
        "loss": f"{name}:loss",
        **SETTINGS,
        **changes,
    }
    return recipe(**content)


def weights(folder: Path) -> dict[str, Tensor]:
    return last_state(folder)["weights"]


def test_a_recipe_names_a_model_data_and_a_loss(mine, tmp_path):
    made = own(mine, model={"name": f"{mine.name}:make_model", "options": {"width": 6}}, seeds=2, epochs=3)
    comparison = run(made, tmp_path / "out")
    first = comparison.histories[0]
    assert [history.status for history in comparison.histories] == ["done", "done"]
    assert first.metric == "loss"
    assert len(first.scores) == 3
    assert len(first.layers) == 2

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))[102:]
    model.load_state_dict({name: value[0] for name, value in weights(tmp_path / "out").items()})
    with torch.no_grad():
        expected = nn.functional.mse_loss(model(x[order]).squeeze(1), x[order, :2].prod(1))
    assert first.test == pytest.approx(float(expected), rel=1e-5)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["config"]["model"]["options"] == {"width": 6}


def test_a_comparison_varies_the_options_of_ones_own_model(mine, tmp_path):
    section = {"remedies": ["default", "he"], "parameters": {"model.options.width": [4, 8]}}
    comparison = run(own(mine, compare=section, remedies="default", seeds=1, epochs=1), tmp_path / "out")
    assert [side.cell.values for side in comparison.sides] == [{"model.options.width": w} for w in (4, 4, 8, 8)]
    assert len(comparison.histories) == 4


def test_a_file_that_has_changed_is_not_resumed(mine, tmp_path):
    run(own(mine), tmp_path / "out")
    run(own(mine), tmp_path / "out", existing="resume")
    mine.write_text(MINE.replace("square()", "abs()"))
    with refused(ConfigError, "source-changed", match=r"abs\(\)"):
        run(own(mine), tmp_path / "out", existing="resume")


def test_the_place_in_the_users_file_is_named(mine, tmp_path):
    mine.write_text(MINE.replace("return (outputs", "raise KeyError('gone')\n    return (outputs"))
    line = next(n for n, text in enumerate(mine.read_text().splitlines(), 1) if "raise" in text)
    with refused(ConfigError, "own-code", match=rf"{mine.stem}\.py:{line} in loss: KeyError: 'gone'"):
        run(own(mine), tmp_path / "out")


def test_settings_of_ones_own_model_are_options(mine):
    with refused(ConfigError, "unknown-setting"):
        own(mine, model={"name": f"{mine.name}:make_model", "width": 3})
    with refused(ConfigError, "does-not-apply"):
        own(mine, data={"name": f"{mine.name}:make_data", "pln": True})
    with refused(ConfigError, "does-not-apply"):
        recipe(data={"options": {"count": 3}})
    with refused(ConfigError, "settings-conflict"):
        own(mine, task="classification")


def test_a_built_in_network_on_ones_own_data(mine, tmp_path):
    mine.write_text(textwrap.dedent(MINE).replace("x[:, :2].prod(1)", "(x[:, 0] > 0).long()"))
    made = recipe(data={"name": f"{mine.name}:make_data", "options": {"count": 90}}, **SETTINGS)
    assert run(made, tmp_path / "out").histories[0].test is not None


def test_a_sweep_of_ones_own_model_ends_with_its_report(mine, tmp_path, capsys):
    words = [f"model={mine.name}:make_model", f"data.name={mine.name}:make_data", f"loss={mine.name}:loss"]
    words += ["sweep.parameters={model.options.width: [3, 9]}", "epochs=1", "seeds=1", "batch_size=16"]
    assert cli.run(["sweep", *words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").exists()
