"""YAML and settings that cannot be."""

from pathlib import Path

import pytest

from trainability.errors import ArgumentError, ConfigError
from trainability.experiments.recipe import Recipe, read_recipe
from trainability.experiments.validation import load_yaml, validated


def test_yaml_is_a_sentence_whatever_is_in_it(tmp_path):
    values = ("2026-02-30", "0x_", "!!int abc", '!!float ""', "!!bool abc", "!!timestamp abc", "9" * 5000, '"a\\0b"')
    for content in (*(f"a: 1\nepochs: {value}" for value in values), "[" * 2000, 'a: "\\ud800"', "? [a]\n: 1"):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(ConfigError) as caught:
            read_recipe(tmp_path / "r.yaml")
        assert caught.value.code in ("yaml", "unknown-setting")
        if content.startswith("a: 1\n"):
            assert "at line 2" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_recipe(Path("/dev/zero"))
    assert caught.value.code == "file-too-large"


def test_half_a_character_is_a_sentence():
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, {"optimizer": {"name": "\ud800"}})
    assert caught.value.code == "setting-type"


def test_a_nest_that_is_huge_when_written_out_is_not_written_out(tmp_path):
    nest = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(30))
    (tmp_path / "r.yaml").write_text(f"{nest}\nmodel: *a29\n")
    with pytest.raises(ConfigError):
        read_recipe(tmp_path / "r.yaml")
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, {"model": load_yaml(nest)["a29"]})
    assert len(str(caught.value)) < 10**4


def test_the_code_of_a_setting_survives_the_schema():
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, {"optimizer": {"name": "adam", "options": {"betas": [0.9]}}})
    assert caught.value.code == "optimizer-options"
    with pytest.raises(ArgumentError) as caught:
        Recipe().with_values({"nothing.here": 1})
    assert caught.value.code == "unknown-setting"
