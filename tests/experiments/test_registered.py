"""A model, a data set, a task and a remedy of one's own, each registered in one place and used in a recipe by name."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from recipes_for_tests import recipe
from refusals import code_of
from trainability import cli
from trainability.data import registry as data_sets
from trainability.data.dataset import Dataset, Split
from trainability.experiments.reference import settings
from trainability.experiments.run import run
from trainability.models import registry as models
from trainability.remedies import Change, Plan, Remedy, register as register_remedy, registry
from trainability.report.page import render
from trainability.tasks import Loss, Metric, Task, TaskKind, registry as tasks


@dataclass(frozen=True)
class Bottleneck(models.Architecture):
    """Two layers with little between them.

    Args:
        narrow: neurons between them
    """

    narrow: int = 4

    def __post_init__(self) -> None:
        models.check_sizes(narrow=self.narrow)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        entries = int(torch.tensor(shape).prod())  # which the meta device does not know
        return nn.Sequential(nn.Flatten(), nn.Linear(entries, self.narrow), nn.Tanh(), nn.Linear(self.narrow, outputs))


@dataclass(frozen=True)
class Doubled(Remedy):
    """Double every weight matrix.

    Args:
        times: how often
    """

    times: int = 1

    def plan(self, model, where, inputs):
        def double(module):
            with torch.no_grad():
                module.weight.mul_(2.0**self.times)

        found = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
        return Plan([(Change(path, "w", "2 w", "<b>doubled</b>"), partial(double, m)) for path, m in found.items()], {})


def means(name: str, request: data_sets.Request) -> Dataset:
    """Images whose label ``(1,)`` is their brightness."""
    generator = torch.Generator().manual_seed(request.split_seed)

    def part(count: int) -> Split:
        pixels = torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
        return Split(pixels, pixels.float().flatten(1).mean(1, keepdim=True) / 255)

    one = torch.ones(1)
    return Dataset(name, 1, part(256), part(64), part(64), 0.5 * one, 0.3 * one, "made here", 0)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1)


@dataclass(frozen=True)
class Brightness(TaskKind):
    """Squared error of the brightness."""

    def task(self) -> Task:
        metric = Metric("mse", "min", _squares, worst=float("inf"))
        return Task("brightness", Loss(_squares, "squared error", "SE"), (metric,))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    models.register("bottleneck")(Bottleneck)
    data_sets.register("means")(means)
    tasks.register("brightness")(Brightness)
    register_remedy("doubled", title="weights doubled", sets="weights", order=1)(Doubled)
    yield
    for home, name in ((models, "bottleneck"), (data_sets, "means"), (tasks, "brightness")):
        del home._registered[name]
    del registry._entries["doubled"]


OWN = {
    "model": {"name": "bottleneck", "narrow": 3},
    "data": {"name": "means"},
    "task": {"name": "brightness"},
    "remedies": [{"name": "doubled", "times": 2}],
    "batch_size": 64,
}


def shown(page: str) -> str:
    """A report without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_all_of_them_train_by_a_recipe(tmp_path):
    comparison = run(recipe(**OWN, epochs=8, optimizer={"lr": 0.02}), tmp_path / "run")
    for history in comparison.histories:
        assert (history.metric, history.remedy) == ("mse", "doubled")
        assert history.scores[-1].test < history.scores[0].test
    (result, _) = comparison.to_dict()["results"]
    assert {"test_mse", "val_mse"} <= result.keys()
    assert comparison.sides[0].reports[0]["remedy"] == {"name": "doubled", "version": 1, "times": 2}
    assert json.loads((tmp_path / "run/remedies.json").read_text()) == comparison.sides[0].reports
    page = shown(render(comparison))
    assert "mse" in page
    assert "accuracy" not in page
    assert "<b>doubled</b>" not in page
    assert "&lt;b&gt;doubled&lt;/b&gt;" in page


def test_they_are_compared_by_the_command_line(tmp_path, capsys):
    words = ["model.name=bottleneck", "data.name=means", "task.name=brightness", "remedies=default,doubled"]
    words += ["remedies.doubled.times=1,2", "model.narrow=2,3", "epochs=1", "seeds=1", "batch_size=64", "--json"]
    assert cli.run(["compare", *words, "--out", str(tmp_path / "run")]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == 2 * (1 + 2)
    assert {result["remedy"] for result in results} == {"default", "doubled"}


def test_they_are_swept(tmp_path, capsys):
    words = ["model.name=bottleneck", "data.name=means", "task.name=brightness", "epochs=2", "seeds=1", "batch_size=64"]
    words += ["sweep.parameters={optimizer.lr: [0.00001, 0.02]}", "--out", str(tmp_path / "run"), "--json"]
    assert cli.run(["sweep", *words]) == 0
    best, other = json.loads(capsys.readouterr().out)["results"]
    assert best["val_mse"] < other["val_mse"]  # less is better
    assert best["params"] == {"optimizer.lr": 0.02}
    page = shown((tmp_path / "run/report.html").read_text())
    assert "validation mse" in page
    assert "accuracy" not in page


def test_they_are_in_the_list_of_settings_and_in_suggestions():
    found = {setting.name: setting for setting in settings()}
    assert "neurons between them" in found["model.narrow"].help
    assert found["remedies.doubled.times"].help == "how often"
    assert "doubled" in found["remedies"].choices
    assert "means" in found["data.name"].choices
    for changes in ({"model": "bottelneck"}, {"data": {"name": "mean"}}, {"task": {"name": "bright"}}):
        assert code_of(lambda changes=changes: recipe(**changes)) == "unknown-choice"
    assert code_of(lambda: recipe(model={"name": "bottleneck", "depth": 3})) == "does-not-apply"
    assert code_of(lambda: recipe(**OWN, engine={"threads": 0})) == "out-of-range"
    assert code_of(lambda: recipe(model={"name": "bottleneck", "narrow": 0})) == "out-of-range"
    assert code_of(lambda: recipe(remedies="doubled+he")) == "settings-conflict"
