"""Every error that the package raises on purpose is one of its own, with a code of its own."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import trainability
from trainability import errors
from trainability.errors import TrainabilityError

SOURCES = sorted(Path(trainability.__file__).parent.rglob("*.py"))
KINDS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
# Ends of a command, and protocols of Python that ask for these.
OTHERS = {"click.exceptions.Exit", "SystemExit", "KeyboardInterrupt", "AttributeError", "NotImplementedError"}
OTHERS |= {"AssertionError"}


def calls():
    """Every call of one of the kinds, and everything that is raised, with its place."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in KINDS:
                yield f"{path.name}:{node.lineno}", "made", node
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield f"{path.name}:{node.lineno}", "raised", node.exc


def test_only_errors_of_the_package_are_raised():
    foreign = {
        f"{place} {name}"
        for place, how, call in calls()
        if how == "raised"
        and (name := ast.unparse(call.func)) not in KINDS | OTHERS
        and name.endswith(("Error", "Exit"))
    }
    assert foreign == set()


def test_every_error_has_a_code():
    without = []
    for place, how, call in calls():
        if how != "made" or place.startswith("errors.py"):
            continue
        code = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
        if code is None or (isinstance(code, ast.Constant) and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code.value)):
            without.append(place)
    assert without == []


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_error_keeps_its_code_through_a_pickle(name):
    kind = getattr(errors, name)
    args = ("layer", "what is wrong") if kind is errors.UnsupportedModelError else ("what is wrong",)
    error = kind(*args, code="some-code")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, TrainabilityError)
    assert (type(again), again.code, str(again)) == (kind, "some-code", str(error))
    assert kind(*args).code == kind.default_code
