"""Words of the command line that are refused: one line, which says what was probably meant."""

import io
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest

from trainability import cli
from trainability.cli.request import prepare, recipe_and_changes
from trainability.errors import ConfigError
from trainability.experiments.reading import read_recipe
from trainability.training.yaml_files import dump_yaml

MANY = ",".join(f"{number}e-4" for number in range(1, 400))

NUMBERS = [
    *("epochs", "batch_size", "seeds", "probes", "checkpoint_every", "model.depth", "optimizer.lr", "schedule.warmup"),
    *("engine.threads", "data.held_out"),
]


def refused(*words):
    """The code of the error with which a recipe of such words is refused, and its message."""
    command, *rest = words

    def read():
        _, changes = recipe_and_changes(rest, {})
        read_recipe(None, changes, command)

    with pytest.raises(ConfigError) as caught:
        read()
    return caught.value.code, str(caught.value)


def said(*words):
    """The exit code, and what is said on standard error."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = cli.run(list(words))
    return code, err.getvalue()


@pytest.mark.parametrize(
    ("word", "code", "meant"),
    [
        ("depth=3", "unknown-setting", "model.depth"),
        ("lr=3", "unknown-setting", "optimizer.lr"),
        ("optimiser.lr=3", "unknown-setting", "optimizer"),
        ("optimizer.lrr=3", "unknown-setting", "optimizer.lr"),
        ("model.depht=3", "unknown-setting", "'model.depth'"),
        ("remedies.lbe.bta=1", "unknown-setting", "'beta'"),
        ("remedies=hee", "unknown-choice", "'he'"),
        ("remedies={name: lbe, convention: papr}", "unknown-choice", "'paper'"),
        ("model=fn", "unknown-choice", "'fnn'"),
        ("model.nonlinearity=rulu", "unknown-choice", "'relu'"),
        ("optimizer.name=adm", "unknown-choice", "adam"),
        ("task.name=clasification", "unknown-choice", "'classification'"),
        ("loggers=tensorbord", "unknown-choice", "'tensorboard'"),
        ("data.name=mnst", "unknown-choice", "'mnist'"),
        ("engine.device=cuda0", "device", "'cuda'"),
    ],
)
def test_a_mistyped_word_suggests_the_right_one(word, code, meant):
    found, message = refused("train", word)
    assert found == code
    assert meant in message.partition("did you mean ")[2].partition("?")[0]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "remedies=tat+he"], "settings-conflict"),
        (["train", "model.depth=1,2"], "setting-type"),
        (["train", "epochs="], "setting-type"),
        (["train", "epochs=0"], "out-of-range"),
        (["train", "data=digits"], "setting-type"),
        (["train", "compare.remedies=he"], "is-a-compare"),
        (["train", "sweep.trials=3"], "is-a-sweep"),
        (["compare", "sweep.trials=3"], "is-a-sweep"),
        (["compare", "sweep.parameters.epochs=1,2"], "is-a-sweep"),
        (["sweep", "compare.remedies=he"], "is-a-compare"),
        (["sweep", "epochs=1"], "not-a-sweep"),
        (["train", "epochs=1", "epochs=2"], "duplicate"),
        (["train", "epochs=2026-02-30"], "yaml"),
        (["train", "epochs=\ud800"], "yaml"),
        (["train", "\ud800=1"], "setting-syntax"),
        (["train", "a\0=1"], "setting-syntax"),
        *((["train", f"{name}=true"], "setting-type") for name in NUMBERS),
        (["train", "remedies.lbe.beta=true"], "wrong-type"),
        (["compare", "compare.remedies=hee"], "unknown-choice"),
        (["compare", "compare.parameters.optimizer.lr=3"], "setting-type"),
        (["compare", "remedies=3"], "wrong-type"),
        (["train", "model.depth=100001"], "out-of-range"),
        (["train", "model.width=" + "9" * 24], "out-of-range"),
        (["train", "model={name: resnet, depth: 600000002}"], "out-of-range"),
        (["train", "model={name: cnn, head: 99999999999999}"], "out-of-range"),
        (["compare", f"optimizer.lr={MANY}", f"optimizer.weight_decay={MANY}"], "too-many-trials"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_code(words, code):
    assert refused(*words)[0] == code


def test_a_conflict_names_both_and_why():
    message = refused("train", "remedies=tat+he")[1]
    assert "tat and he both set the weights" in message


def test_a_message_names_its_setting_once():
    assert refused("train", "data.held_out=-5")[1].startswith("data.held_out is -5")


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--depth", "1", "--depth", "2"],
        ["train", "--config", "a", "--config", "b"],
        ["train", "--depth", "1", "model.depth=2"],
        ["train", "--out", "\ud800"],
        ["train", "--out", "a\0b"],
        ["train", "--config", "\ud800"],
        ["sweep", "--workers", "0"],
        ["sweep", "--workers", "x"],
        ["train", "--resume", "--overwrite"],
        ["compar"],
        ["compare", "--dept", "3"],
        ["train", 'model="\\e]0;x\\a\\e[31mred"'],
        ["train", 'checkpoint_every="a\\nb"'],
        ["train", "model=" + "x" * 100_000],
    ],
)
def test_a_wrong_call_is_one_printable_line_of_bounded_length(words):
    code, message = said(*words)
    assert code == 2
    assert message.startswith("trainability: ")
    assert message.endswith("\n")
    assert message[:-1].isprintable()
    assert len(message) < 700


def test_a_folder_in_use_says_what_to_type(tmp_path):
    (tmp_path / "recipe.yaml").write_text("{}")
    code, message = said("train", "--out", str(tmp_path))
    assert code == 2
    assert all(flag in message for flag in ("--resume", "--overwrite", "--out"))


def test_a_folder_of_another_recipe_says_where_they_differ_before_anything_is_loaded(tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_yaml(read_recipe(None, {"model.depth": 3}, "train").resolved()))
    with patch("trainability.cli._experiment", prepare):
        code, message = said("train", "--out", str(tmp_path), "--resume")
    assert code == 2
    assert "model.depth" in message
    assert "3" in message.partition("model.depth")[2]
    assert all(flag in message for flag in ("--overwrite", "--out"))


@pytest.mark.parametrize(
    ("content", "words", "meant"),
    [
        ({}, ["train", "epochs=20"], None),
        ({}, ["train", "epochs=9"], "epochs=10 or more"),
        ({"schedule.kind": "cosine"}, ["train", "epochs=20", "schedule.kind=cosine"], "epochs=10"),
        (
            {"sweep.parameters.optimizer.lr": [1, 2]},
            ["sweep", "epochs=20", "sweep.parameters.optimizer.lr=1,2"],
            "--out",
        ),
    ],
)
def test_more_epochs_extend_a_run_and_where_they_cannot_it_says_what_to_type(tmp_path, content, words, meant):
    kept = read_recipe(None, {"epochs": 10, **content}, words[0])
    (tmp_path / "recipe.yaml").write_text(dump_yaml(kept.resolved()))
    asked = ["--out", str(tmp_path), "--resume"]
    given = {"resume": True, "overwrite": False, "out": tmp_path, "as_json": False, "print_config": False}
    if meant is None:
        request = prepare(words[0], {**given, "words": words[1:]})
        assert request is not None
        assert (request.existing, request.recipe.epochs) == ("resume", 20)
    else:
        code, message = said(*words, *asked)
        assert code == 2
        assert meant in message


def test_parameters_of_a_comparison_can_be_typed_by_their_own_names():
    changes = {"compare.parameters.optimizer.lr": [0.1, 0.01], "compare.remedies": ["he"]}
    assert read_recipe(None, changes, "compare") == read_recipe(
        None, {"optimizer.lr": [0.1, 0.01], "remedies": "he"}, "compare"
    )


def test_help_of_a_comparison_has_the_remedies_that_it_compares():
    with redirect_stdout(io.StringIO()) as out:
        assert cli.run(["compare", "--help"]) == 0
    flag = out.getvalue().partition("--remedies VALUE")[2].partition("--device")[0]
    assert "[default,he,lbe]" in " ".join(flag.split())
