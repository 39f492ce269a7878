"""The recipe to begin with: it is a recipe of its command, at the defaults, and says what everything means."""

import re

import pytest

from trainability.experiments.reading import read_recipe
from trainability.experiments.recipe import Recipe
from trainability.experiments.template import template
from trainability.models import registry as models
from trainability.remedies import registry as remedies
from trainability.training.yaml_files import load_yaml

SWEEP = {"sweep": {"parameters": {"optimizer.lr": [0.001, 0.003]}}}


@pytest.mark.parametrize(
    ("command", "expected"), [("train", Recipe()), ("compare", Recipe(compare={})), ("sweep", Recipe(**SWEEP))]
)
def test_it_is_a_recipe_of_its_command_with_every_setting_at_its_default(command, expected, tmp_path):
    (tmp_path / "my.yaml").write_text(template(command))
    assert read_recipe(tmp_path / "my.yaml", {}, command) == expected
    written, whole = load_yaml(template(command), "it"), expected.resolved()
    others = {"train", "compare", "sweep", "remedies" if command == "compare" else ""} - {command}
    assert written.keys() == whole.keys() - others
    for section in written.keys() - {"seeds", "remedies"}:
        if isinstance(whole[section], dict):
            assert written[section].keys() == whole[section].keys()


@pytest.mark.parametrize("command", ["train", "compare", "sweep"])
def test_every_setting_is_explained_and_every_name_is_there(command):
    lines = template(command).splitlines()
    assert len(lines) < 70
    for line in lines:
        assert re.fullmatch(r"\w+:|\s*# .+| *\w+: .+ # .+", line), line
    comments = [line for line in lines if line.lstrip().startswith("#")]
    named = set(re.findall(r"[\w-]+", " ".join(comments)))
    assert named >= {*remedies.names(), *models.names(), "strides", "unit"}
