"""References to what is the user's own."""

import sys

import pytest

from refusals import refused
from trainability._references import is_reference, load, reference_to
from trainability.errors import ConfigError


def test_what_is_a_reference():
    assert is_reference("a.py:b")
    assert is_reference("a.b:c")
    assert not any(map(is_reference, ("fnn", "postgresql://host/name", None, 3)))


def test_files_and_modules_are_loaded_once_and_may_import_their_neighbors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_it.py").write_text("VALUE = 3\n")
    (tmp_path / "refers.py").write_text("from beside_it import VALUE\ndef make():\n    return VALUE\n")
    assert load("refers.py:make") is load("refers.py:make")
    assert load("refers.py:make")() == 3
    assert load("refers:make") is load("refers.py:make")
    assert reference_to(load("refers.py:make")) == "refers:make"


@pytest.mark.parametrize(
    ("text", "reference", "code"),
    [
        ("", "missing.py:make", "reference"),
        ("", "missing.module:make", "reference"),
        ("", "FILE:a.b", "reference"),
        ("", ":make", "reference"),
        ("x = ", "FILE:make", "own-code"),
        ("1 / 0", "FILE:make", "own-code"),
        ("import nothing_of_that_name", "FILE:make", "own-code"),
    ],
)
def test_what_cannot_be_loaded_is_refused(text, reference, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / f"unloadable_{abs(hash((text, reference)))}.py"
    file.write_text(text)
    with refused(ConfigError, code):
        load(reference.replace("FILE", file.name))
    assert file.stem not in sys.modules


def test_a_name_that_a_file_lacks_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "has_made.py").write_text("def made(): ...")
    with refused(ConfigError, "reference", match="did you mean 'made'"):
        load("has_made.py:make")


def test_errors_that_are_not_of_the_users_code_pass():
    with pytest.raises(ZeroDivisionError):
        _below_a_library()


def _below_a_library() -> None:
    code = compile(
        "from trainability._references import naming_the_place\nwith naming_the_place():\n    1 / 0", "<x>", "exec"
    )
    exec(code, {})
