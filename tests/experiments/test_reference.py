"""The list of all settings, and that each can be given as it stands there."""

import dataclasses

import pytest

from trainability.experiments.reading import parse_setting, read_recipe
from trainability.experiments.recipe import Recipe
from trainability.experiments.reference import Setting, meanings_of, settings
from trainability.models import registry as models
from trainability.remedies import registry as remedies

# Values where the default is none, or is not allowed beside the other defaults.
TYPED = {
    "data.dir": "/somewhere",
    "data.held_out": "100",
    "data.image_size": "32",
    "data.classes": "5",
    "data.per_class": "10",
    "data.options": "{noise: 0.1}",
    "optimizer.options": "{betas: [0.8, 0.9]}",
    "schedule.milestones": "[1, 2]",
    "engine.threads": "1",
    "checkpoint_every": "3",
    "loggers": "[]",
    "compare.parameters": "{model.depth: [2, 3]}",
    "sweep.parameters": "{optimizer.lr: [0.1, 0.2]}",
    "sweep.trials": "7",
    "sweep.storage": "sqlite:///s.db",
    "task.loss of own": "mine.py:loss",
    "task.metrics": "{r2: {of: mine.py:r2, direction: max}}",
}
GRID = "sweep.parameters={optimizer.lr: [0.1]}"
UNITS = ("conv-relu-ic", "ic-conv-relu", "relu-ic-conv")
# What a setting needs beside it.
BESIDE = {
    **{f"data.{name}": ["data.name=folder", "data.dir=/x"] for name in ("image_size", "classes", "per_class")},
    "data.dir": ["data.name=folder"],
    "data.options": ["data.name=mine.py:make_data"],
    "schedule.milestones": ["schedule.kind=step"],
    "sweep.method": [GRID],
    "task.metrics": ["task.loss=mine.py:loss"],
    "sweep.trials": ["sweep.method=tpe", GRID],
    **{f"remedies.{unit}.keep": ["model.name=resnet", "model.depth=20"] for unit in UNITS},
    **{f"sweep.{name}": [GRID] for name in ("stack", "storage", "retries", "heartbeat")},
}


def every() -> list[Setting]:
    return list(settings())


@pytest.mark.parametrize("setting", every(), ids=lambda s: f"{s.name} {s.help[:12]}")
def test_every_setting_can_be_given_as_name_and_value(setting):
    typed = TYPED.get(setting.name) or TYPED.get(f"{setting.name} of {setting.of}")
    value = typed or setting.shown_default() or "null"
    words = [*BESIDE.get(setting.name, []), f"{setting.name}={value}"]
    if setting.of:
        words.insert(0, f"{setting.name.partition('.')[0]}.name={setting.of}")
        words = list(dict.fromkeys(words))
    command = next((c for c in ("sweep", "compare") if setting.name.startswith(c)), "train")
    if command == "sweep":
        words.append("data.name=digits")
    made = read_recipe(None, dict(map(parse_setting, words)), command)
    *path, last = setting.name.split(".")
    place = made.resolved()
    if path[:1] == ["remedies"]:
        place = next(part for part in place["remedies"] if part["name"] == path[1])
    else:
        for part in path:
            place = place[part]
    assert last in place
    if typed and command != "train":
        assert place[last] == parse_setting(words[-1 - (command == "sweep")])[1]
    if not typed and not setting.takes_list and "remedies" not in setting.name.split("."):
        assert str(place[last]).lower() == (value if value != "null" else "none").lower()


def test_the_list_is_whole_and_every_entry_says_what_it_means():
    found = every()
    assert all(setting.help and "\n" not in setting.help for setting in found)
    names = {setting.name for setting in found}
    written = Recipe().resolved()
    for section in ("data", "task", "optimizer", "schedule", "engine"):
        assert {f"{section}.{key}" for key in written[section]} <= names
    for name in models.names():
        assert {f"model.{field.name}" for field in dataclasses.fields(models.architecture(name))} <= names
    for name in remedies.names():
        assert {f"remedies.{name}.{key}" for key in remedies.entry(name).settings} <= names
    assert {"epochs", "batch_size", "seeds", "remedies", "model.name", "compare.remedies", "sweep.method"} <= names


def test_choices_are_those_of_the_registries():
    found = {setting.name: setting for setting in every()}
    assert found["remedies"].choices == found["compare.remedies"].choices == remedies.names()
    assert found["model.name"].choices == models.names()
    assert found["optimizer.name"].choices == ()
    assert found["schedule.kind"].choices == ("constant", "step", "cosine", "plateau")
    assert found["data.hub"].choices == ("true", "false")


def test_meanings_are_read_off_docstrings():
    class Base:
        """Something.

        Args:
            two: what it is of the base
            four: of the base
        """

    class Documented(Base):
        """Something.

        Args:
            one: the first, which
                takes two lines.
            two: the ``second``

        More.
            three: none of them
        """

    own = {"one": "the first, which takes two lines", "two": "the second"}
    assert meanings_of(Documented) == {**own, "four": "of the base"}
    assert meanings_of(int) == {}
