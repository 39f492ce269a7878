"""Folders of results: what becomes of one that holds something, and what in it would lead writes elsewhere."""

import json
import os
import re
from pathlib import Path

import pytest

from recipes_for_tests import SWEEP, newest, recipe, write
from refusals import code_of, codes_of, refused
from trainability import cli
from trainability.errors import FolderError
from trainability.experiments.run import run
from trainability.training.folder import RunFolder
from trainability.training.places import check_place, checkpoints, clear, held_recipe, keep_recipe, step_of
from trainability.training.yaml_files import read_yaml

COMMANDS = ("train", "compare", "sweep")
OWN = (
    *("recipe.yaml", "environment.json", "events.jsonl", "results.json", "remedies.json", ".lock", "report.html"),
    *("study.db", "worker1.log", "stacks", "checkpoints"),
)
DIGEST = "0123456789abcdef"


def words(command: str, tmp_path: Path, **changes: object) -> list[str]:
    part = {"sweep": {"sweep": SWEEP}, "compare": {"compare": {"remedies": ["default", "he"]}}, "train": {}}[command]
    file = write(tmp_path / "r.yaml", epochs=1, seeds=1, **{**part, **changes})
    return [command, str(file), "--out", str(tmp_path / "run")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_one_policy_for_folders_that_hold_results(tmp_path, monkeypatch, capsys, command):
    call, codes = words(command, tmp_path), codes_of(monkeypatch)
    assert cli.run([*call, "--resume"]) == 2
    assert cli.run(call) == 0
    before = contents(tmp_path / "run")
    assert cli.run(call) == 2
    said = capsys.readouterr().err
    assert "--resume" in said
    assert "--overwrite" in said
    assert contents(tmp_path / "run") == before
    assert cli.run([*call, "--resume"]) == 0
    other = words(command, tmp_path, optimizer={"name": "sgd"})
    assert cli.run([*other, "--resume"]) == 2
    assert cli.run([*other, "--overwrite", "--resume"]) == 2
    assert cli.run([*other, "--overwrite"]) == 0
    assert "name: sgd" in (tmp_path / "run/recipe.yaml").read_text()
    assert codes == ["nothing-to-resume", "folder-in-use", "other-recipe", "settings-conflict"]


@pytest.mark.parametrize("command", COMMANDS)
def test_overwriting_takes_away_what_the_commands_wrote_and_nothing_else(tmp_path, command):
    folder = tmp_path / "run"
    assert cli.run([*words(command, tmp_path), "--overwrite"]) == 0  # of what is not there yet
    mine = ["notes.txt", "data/a.bin", "checkpoints.old/x.pt", "recipe.yaml.bak", "stacks/mine/a.txt", ".hidden"]
    for name in mine:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    last = {"train": "sweep", "compare": "train", "sweep": "compare"}[command]  # none of its files may be left
    assert cli.run([*words(last, tmp_path), "--overwrite"]) == 0
    assert all((folder / name).read_text() == "mine" for name in mine)
    left = {name for name in contents(folder) if name not in (*mine, ".lock")}
    fresh = tmp_path / "fresh"
    assert cli.run([*words(last, tmp_path)[:-1], str(fresh)]) == 0
    expected = {name for name in contents(fresh) if name != ".lock"}
    assert {_undated(name) for name in left} == {_undated(name) for name in expected}


def _undated(name: str) -> str:
    """The name of a file, without the digest of a checkpoint."""
    return re.sub("-[0-9a-f]{16}.pt", "", name)


def test_clearing_leaves_an_empty_folder_and_the_lock(tmp_path):
    run(recipe(compare={"remedies": ["he", "ic"]}, epochs=1), tmp_path / "run")
    clear(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    clear(tmp_path / "run")
    clear(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["link", "dangling", "second name", "pipe"])
@pytest.mark.parametrize("command", ["train", "resume", "sweep", "compare", "overwrite"])
def test_nothing_outside_a_folder_changes_by_a_link_in_it(tmp_path, monkeypatch, name, kind, command):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    folder.mkdir()
    if kind != "dangling":
        outside.write_text("precious")
    {"second name": lambda: (folder / name).hardlink_to(outside), "pipe": lambda: os.mkfifo(folder / name)}.get(
        kind, lambda: (folder / name).symlink_to(outside)
    )()
    more = [f"--{command}"] if command in ("resume", "overwrite") else []
    codes = codes_of(monkeypatch)
    assert cli.run([*words("train" if more else command, tmp_path), *more]) == 2
    assert codes == ["not-a-file" if kind == "pipe" else "link"]
    assert outside.exists() == (kind != "dangling")
    assert kind == "dangling" or outside.read_text() == "precious"
    assert [p.name for p in folder.iterdir()] == [name]


@pytest.mark.parametrize("existing", ["resume", "overwrite"])
def test_a_link_in_the_folder_of_a_stack_is_refused(tmp_path, existing):
    made = recipe(compare={"remedies": ["he", "ic"]}, epochs=1)
    run(made, tmp_path / "run")
    outside = tmp_path / "outside"
    (tmp_path / "run/stacks/1-he/checkpoints").rename(outside)
    (tmp_path / "run/stacks/1-he/checkpoints").symlink_to(outside)
    before = contents(outside)
    with refused(FolderError, "link"):
        run(made, tmp_path / "run", existing=existing)
    assert contents(outside) == before
    (tmp_path / "run/stacks/1-he").rename(tmp_path / "elsewhere")
    (tmp_path / "run/stacks/1-he").symlink_to(tmp_path / "elsewhere")
    with refused(FolderError, "link"):
        run(made, tmp_path / "run", existing=existing)
    assert contents(outside) == before


def test_checkpoints_elsewhere_are_neither_written_nor_taken_away(tmp_path):
    run(recipe(), tmp_path / "run")
    (tmp_path / "run/checkpoints").rename(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "elsewhere")
    with refused(FolderError, "link"):
        run(recipe(), tmp_path / "run", existing="resume")
    assert contents(tmp_path / "elsewhere") == before
    (tmp_path / "run/checkpoints").unlink()
    (tmp_path / "run/checkpoints").mkdir()
    for kept in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "run/checkpoints" / kept.name).symlink_to(kept)
    with refused(FolderError, "link"):
        run(recipe(), tmp_path / "run", existing="resume")


def test_a_run_folder_that_is_a_link_itself_is_used(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/data").symlink_to("/nowhere")  # none of a run's
    run(recipe(), tmp_path / "run")
    assert run(recipe(), tmp_path / "run", existing="resume").histories[0].status == "done"
    assert (tmp_path / "disk/results.json").exists()
    run(recipe(), tmp_path / "run", existing="overwrite")
    assert (tmp_path / "disk/data").is_symlink()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda place: place.write_text("x"), "out-not-writable"),
        (lambda place: place.symlink_to("nowhere/at/all"), "out-not-writable"),
        (lambda place: (place.mkdir(), (place / "results.json").write_text("{}")), "folder-in-use"),
        (lambda place: (place.mkdir(), (place / "report.html").write_text("")), "folder-in-use"),
        (lambda place: (place.mkdir(), (place / "events.jsonl").write_text("")), "folder-in-use"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_beforehand(tmp_path, make, code):
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert code_of(lambda: check_place(tmp_path / "run", "refuse")) == code
    if code == "folder-in-use":
        check_place(tmp_path / "run", "overwrite")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_can_be_used_is_left_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    check_place(tmp_path / "run", "refuse")
    check_place(tmp_path / "a/b/c", "refuse")
    assert not (tmp_path / "a").exists()
    for name in ("a" * 300, "a\0b", "r.txt/x"):
        (tmp_path / "r.txt").write_text("x")
        assert code_of(lambda name=name: check_place(tmp_path / name, "refuse")) == "out-not-writable"


def test_checkpoints_are_those_of_a_run_the_newest_first(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    ours = [f"step-{step:08d}-{DIGEST}.pt" for step in (100000000, 7, 0)]
    other = [
        "step-7.pt",
        f"step-00000009-{DIGEST[:-1]}.pt",
        f"step-00000009-{DIGEST}.damaged",
        ".step-00000009.pt",
        "a.pt",
    ]
    for name in [*ours[1:], *other, ours[0]]:
        (tmp_path / "checkpoints" / name).write_text("")
    assert [path.name for path in checkpoints(tmp_path)] == ours
    assert [step_of(path) for path in checkpoints(tmp_path)] == [100000000, 7, 0]


def test_a_kept_recipe_is_compared_apart_from_what_is_free(tmp_path):
    keep_recipe(tmp_path / "run", {"a": {"b": 1, "c": 2}, "d": [1]}, {})
    keep_recipe(tmp_path / "run", {"a": {"b": 1, "c": 2}, "d": [1]}, {})
    keep_recipe(tmp_path / "run", {"a": {"b": 1, "c": 3}, "d": [1]}, {}, free=("a.c",))
    with refused(FolderError, "other-recipe", match=r"a\.c is 2 there and 3 here"):
        keep_recipe(tmp_path / "run", {"a": {"b": 1, "c": 3}, "d": [1]}, {})


@pytest.mark.parametrize("made", [dict, lambda **own: {"networks": [{**own, "n": n} for n in range(2)]}])
def test_a_kept_recipe_of_fewer_epochs_gives_way_to_one_of_more(tmp_path, made):
    keep_recipe(tmp_path, made(epochs=2, a=1), {"here": 1})
    assert held_recipe(tmp_path, made(epochs=3, a=1)) == "shorter"
    keep_recipe(tmp_path, made(epochs=3, a=1), {"here": 2})
    assert read_yaml(tmp_path / "recipe.yaml", "it") == made(epochs=3, a=1)
    assert json.loads((tmp_path / "environment.json").read_text()) == {"here": 1}  # in which it began
    for other, reason, code in (
        (made(epochs=2, a=1), None, "fewer-epochs"),
        (made(epochs=4, a=1), "because", "fixed-length"),
        (made(epochs=4, a=2), None, "other-recipe"),
        (made(epochs=None, a=1), None, "other-recipe"),
    ):
        with refused(FolderError, code):
            keep_recipe(tmp_path, other, {}, fixed_length=reason)
    assert held_recipe(tmp_path, made(epochs=3, a=1), fixed_length="because") == "same"


def test_what_two_processes_ask_for_only_one_gets(tmp_path):
    plain = recipe().resolved()
    with RunFolder(tmp_path / "run", plain, {}), refused(FolderError, "folder-locked"):
        RunFolder(tmp_path / "run", plain, {}, "resume")
    with RunFolder(tmp_path / "run", plain, {}, "resume"), refused(FolderError, "folder-locked"):
        RunFolder(tmp_path / "run", plain, {}, "overwrite")
    RunFolder(tmp_path / "run", plain, {}, "overwrite").close()
    assert (tmp_path / "run/recipe.yaml").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_which_another_process_trains_is_not_overwritten(tmp_path, monkeypatch, command):
    codes = codes_of(monkeypatch)
    with RunFolder(tmp_path / "run", recipe().resolved(), {}) as folder:
        folder.save({"steps": 1})
        assert cli.run([*words(command, tmp_path), "--overwrite"]) == 2
        assert newest(tmp_path / "run").exists()
    assert codes == ["folder-locked"]


def test_the_newest_of_a_finished_run_is_its_last_step(tmp_path):
    comparison = run(recipe(), tmp_path / "run")
    assert step_of(newest(tmp_path / "run")) == comparison.histories[0].steps
