"""YAML that cannot be read is one error, and takes no longer than what can."""

import time
from pathlib import Path

import pytest

from refusals import code_of
from trainability.errors import ConfigError
from trainability.training.yaml_files import dump_yaml, load_yaml, read_yaml


@pytest.mark.parametrize(
    "value",
    [
        *("2026-02-30", "2001-13-45", "0x_", "!!int abc", "!!int ''", '!!float ""', "!!bool abc", "!!timestamp abc"),
        *("9" * 5000, "*a", "[", "!unknown 3", "{a: 1, a: 2}", "!!omap 3"),
    ],
)
def test_a_value_that_cannot_be_made_is_an_error_with_its_line(value):
    with pytest.raises(ConfigError) as caught:
        load_yaml(f"a: 1\nb: {value}\n", "it")
    assert caught.value.code == "yaml"
    assert "it is not valid YAML at line " in str(caught.value)


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\0b"', "\ud800", "a\0b", "\x07"])
def test_characters_that_no_file_takes_are_refused(text):
    assert code_of(lambda: load_yaml(text, "it")) == "yaml"


PAIRS = zip("abcdefg", "bcdefgh", strict=True)
NESTED = "[&a [x, x], " + ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in PAIRS) + "]"


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"k{number}: 1\n" for number in range(50_000)),
        "[" + "a," * 400_000 + "]",
        "[" * 2000,
        "{a: " * 60 + "1" + "}" * 60,
        "- " * 3000 + "a",
        NESTED,
    ],
)
def test_what_is_too_large_or_too_deep_is_refused_soon(text):
    begin = time.process_time()
    assert code_of(lambda: load_yaml(text, "it")) in ("file-too-large", "yaml")
    assert time.process_time() - begin < 3


def test_an_endless_file_is_not_read_to_its_end():
    assert code_of(lambda: read_yaml(Path("/dev/zero"), "it")) == "file-too-large"


def test_what_is_written_is_read_again():
    content = {"a": [1, 2.5, 1e-7, True, None, "null", "1", "é", "a: b", "#"], "b": {"c": "2026-01-01"}, "d": {}}
    assert load_yaml(dump_yaml(content), "it") == content
