"""Reading recipes: files, what was typed, and where lists go."""

from pathlib import Path

import pytest

from recipes_for_tests import SWEEP, write
from refusals import code_of, refused
from trainability.errors import ConfigError
from trainability.experiments.axes import Range
from trainability.experiments.reading import parse_setting, read_recipe
from trainability.experiments.recipe import Recipe
from trainability.training.yaml_files import dump_yaml


def sides(recipe: Recipe) -> list[tuple[str, dict[str, object]]]:
    return [(cell.recipe.remedies.name, cell.values) for cell in recipe.cells()]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=1e-3", 1e-3),
        ("lr=1e-3,3e-3", [1e-3, 3e-3]),
        ("lr=[1, 2]", [1, 2]),
        ("lr={low: 1, high: 2}", {"low": 1, "high": 2}),
        ('lr="a,b"', "a,b"),
        ("lr=a=b", "a=b"),
        ("lr=", None),
        ("lr=null", None),
        ("lr=true", True),
        ("lr=off", "off"),  # YAML 1.2: neither of these is a flag or a time
        ("lr=1:30", "1:30"),
        ("remedies=default,he,tat+lbe", ["default", "he", "tat+lbe"]),
    ],
)
def test_a_setting_is_a_name_and_yaml(text, value):
    name = text.partition("=")[0]
    assert parse_setting(text) == (name, value)
    assert type(parse_setting(text)[1]) is type(value)


@pytest.mark.parametrize(("text", "code"), [("lr", "setting-syntax"), ("=3", "setting-syntax"), ("lr=[", "yaml")])
def test_a_setting_that_is_none_is_refused(text, code):
    assert code_of(lambda: parse_setting(text)) == code


def test_a_list_in_a_comparison_becomes_an_axis():
    changes = {
        "remedies": ["default", "lbe"],
        "model.depth": [2, 3],
        "optimizer.lr": 0.1,
        "remedies.lbe.beta": [0.1, 1],
    }
    made = read_recipe(None, changes, "compare")
    assert made.optimizer.lr == 0.1
    wanted = [
        *[("default", {"model.depth": depth}) for depth in (2, 3)],
        *[("lbe", {"model.depth": depth, "remedies.lbe.beta": beta}) for depth in (2, 3) for beta in (0.1, 1)],
    ]
    assert len(sides(made)) == len(wanted)
    assert all(side in sides(made) for side in wanted)


def test_a_list_in_the_file_of_a_comparison_is_an_axis_too(tmp_path):
    file = write(tmp_path / "r.yaml", optimizer={"lr": [0.1, 0.2]}, batch_size=[64, 128], remedies="he")
    assert sides(read_recipe(file, {}, "compare")) == [
        (name, {"batch_size": size, "optimizer.lr": lr})
        for size in (64, 128)
        for lr in (0.1, 0.2)
        for name in ("default", "he")
    ]
    assert code_of(lambda: read_recipe(file, {}, "train")) == "setting-type"


def test_settings_that_are_lists_stay_so_in_a_comparison():
    changes = {"seeds": [3, 5], "schedule.kind": "step", "schedule.milestones": [1, 2], "loggers": []}
    made = read_recipe(None, {**changes, "optimizer.options": {"betas": [0.8, 0.9]}}, "compare")
    assert (made.seeds, made.schedule.milestones, made.compare.parameters) == ((3, 5), (1, 2), {})
    assert made.optimizer.options == {"betas": [0.8, 0.9]}


def test_a_comparison_is_of_what_is_given():
    names = lambda changes: [name for name, _ in sides(read_recipe(None, changes, "compare"))]  # noqa: E731
    assert names({}) == ["default", "he", "lbe"]
    assert names({"remedies": "tat+lbe"}) == ["tat+lbe"]
    assert names({"remedies": ["he", [{"name": "ic", "keep": 0.8}, "lbe"]]}) == ["he", "ic+lbe"]
    one = read_recipe(None, {"remedies.tat.eta": 0.8, "remedies": ["he", "tat"]}, "compare")
    assert [(name, values) for name, values in sides(one)] == [("he", {}), ("tat", {"remedies.tat.eta": 0.8})]


def test_the_remedies_of_a_recipe_are_compared_with_none(tmp_path):
    assert [n for n, _ in sides(read_recipe(write(tmp_path / "r.yaml", remedies="tat"), {}, "compare"))] == [
        "default",
        "tat",
    ]


@pytest.mark.parametrize("compare", [{"remedies": ["he"]}, {"remedies": ["he"], "parameters": {"model.depth": [2, 3]}}])
def test_a_part_compare_in_a_file_is_read_and_changed(tmp_path, compare):
    file = write(tmp_path / "r.yaml", compare=compare)
    assert {name for name, _ in sides(read_recipe(file, {}, "compare"))} == {"he"}
    assert {name for name, _ in sides(read_recipe(file, {"remedies": ["ic", "tat"]}, "compare"))} == {"ic", "tat"}
    (depths,) = {cell.recipe.model.depth for cell in read_recipe(file, {"model.depth": 4}, "compare").cells()}
    assert depths == 4


def test_a_recipe_belongs_to_its_command(tmp_path):
    swept, compared = write(tmp_path / "s.yaml", sweep=SWEEP), write(tmp_path / "c.yaml", compare={"remedies": ["he"]})
    plain = write(tmp_path / "p.yaml")
    assert code_of(lambda: read_recipe(swept, {}, "train")) == "is-a-sweep"
    assert code_of(lambda: read_recipe(swept, {}, "compare")) == "is-a-sweep"
    assert code_of(lambda: read_recipe(compared, {}, "train")) == "is-a-compare"
    assert code_of(lambda: read_recipe(compared, {}, "sweep")) == "is-a-compare"
    assert code_of(lambda: read_recipe(plain, {}, "sweep")) == "not-a-sweep"
    assert read_recipe(swept, {"sweep": None}, "train").sweep is None
    assert read_recipe(compared, {"compare": None}, "train").compare is None
    ranged = {"sweep.method": "tpe", "sweep.trials": 2, "sweep.parameters": {"optimizer.lr": {"low": 0.1, "high": 1}}}
    assert read_recipe(plain, ranged, "sweep").sweep.parameters == {"optimizer.lr": Range(low=0.1, high=1)}


def test_what_is_typed_wins_over_the_file(tmp_path):
    file = write(tmp_path / "r.yaml", remedies=["he", {"name": "lbe", "beta": 0.5}], optimizer={"lr": 0.1})
    made = read_recipe(file, {"optimizer.lr": 0.2, "remedies.lbe.alpha": 1.0, "model.name": "cnn"}, "train")
    assert (made.optimizer.lr, made.model.name, made.model.depth) == (0.2, "cnn", 2)
    assert (made.remedies.loss.alpha, made.remedies.loss.beta) == (1.0, 0.5)


def test_changing_the_model_drops_what_the_other_does_not_have(tmp_path):
    file = write(tmp_path / "r.yaml", model={"name": "cnn", "depth": 8, "width": 2, "strides": 1})
    made = read_recipe(file, {"model.name": "resnet"}, "train")
    assert (made.model.name, made.model.depth) == ("resnet", 8)


@pytest.mark.parametrize("command", ["train", "compare", "sweep"])
def test_a_recipe_that_was_printed_is_read_as_the_same(tmp_path, command):
    changes = {
        "train": {"remedies": ["tat", {"name": "lbe", "beta": 0.3}], "model.name": "cnn", "model.depth": 20},
        "compare": {"remedies": ["he", "tat+lbe"], "model.depth": [20, 30], "remedies.lbe.beta": [0.1, 0.2]},
        "sweep": {"sweep.parameters": {"optimizer.lr": [0.1, 0.2]}, "remedies": "he"},
    }[command]
    made = read_recipe(None, changes, command)
    (tmp_path / "r.yaml").write_text(dump_yaml(made.resolved()))
    assert read_recipe(tmp_path / "r.yaml", {}, command) == made


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": 3, "model.depth": 2}, "unknown-setting"),
        ({"model.depth.more": 2}, "setting-type"),
        ({"modle.depth": 2}, "unknown-setting"),
        ({"remedies.tat": 2}, "unknown-setting"),
        ({"remedies": ["lba"]}, "unknown-choice"),
        ({"remedies.lba.beta": 1}, "unknown-choice"),
        ({"remedies.lbe.bata": 1}, "unknown-setting"),
        ({"compare": 3}, "setting-type"),
        ({"compare.parameters": 3}, "setting-type"),
        ({"compare.parameters": "model.depth"}, "setting-type"),
        ({"compare": {"parameters": [1, 2]}}, "setting-type"),
        ({"data": [1]}, "cannot-vary"),
        ({"remedies.lbe.beta": []}, "out-of-range"),
        ({"model.depth": []}, "out-of-range"),
        ({"engine.precision": ["32-true", "64-true"]}, "cannot-vary"),
        ({"task.name": ["classification"]}, "setting-type"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_what_cannot_be_read_is_an_error_of_the_package(changes, code, command):
    """Lists and parts of a comparison are refused differently where there is none, but never leak."""
    found = code_of(lambda: read_recipe(None, changes, command))
    if command == "compare":
        assert found == code


def test_a_setting_of_a_remedy_that_is_not_compared_is_refused():
    changes = {"remedies": ["he", "tat"], "remedies.lbe.beta": [0.1, 0.2]}
    assert code_of(lambda: read_recipe(None, changes, "compare")) == "does-not-apply"


def test_a_file_that_is_not_there_is_named():
    with refused(ConfigError, "file-unreadable", match=r"missing\.yaml"):
        read_recipe(Path("missing.yaml"), {}, "train")
