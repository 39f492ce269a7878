"""Folders in which something of a run's is a link, and would lead its writes elsewhere."""

import os

import pytest
from trainability.experiments.train import train

from recipes_for_tests import SWEEP, recipe, write
from refusals import codes_of
from trainability import cli
from trainability.errors import FolderError

OWN = (
    "recipe.yaml",
    "environment.json",
    "events.jsonl",
    "results.json",
    ".lock",
    "report.html",
    "study.db",
    "worker1.log",
)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["link", "dangling", "second name", "pipe"])
@pytest.mark.parametrize("command", ["train", "resume", "sweep", "compare"])
def test_nothing_outside_a_folder_changes_by_a_link_in_it(tmp_path, monkeypatch, name, kind, command):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    folder.mkdir()
    if kind != "dangling":
        outside.write_text("precious")
    {"second name": lambda: (folder / name).hardlink_to(outside), "pipe": lambda: os.mkfifo(folder / name)}.get(
        kind, lambda: (folder / name).symlink_to(outside)
    )()
    file = write(tmp_path / "r.yaml", **({"sweep": SWEEP} if command == "sweep" else {}))
    words = {
        "train": ["train", str(file)],
        "resume": ["train", str(file), "--resume"],
        "sweep": ["sweep", str(file)],
        "compare": ["compare", "--depth", "2", "--width", "4", "--epochs", "1", "--seeds", "1", "--remedies", "he"],
    }[command]
    codes = codes_of(words[0], monkeypatch)
    assert cli.run([*words, "--out", str(folder)]) == 2
    assert codes == ["not-a-file" if kind == "pipe" else "link"]
    assert outside.exists() == (kind != "dangling")
    assert kind == "dangling" or outside.read_text() == "precious"
    assert [p.name for p in folder.iterdir()] == [name]


def test_checkpoints_elsewhere_are_neither_written_nor_taken_away(tmp_path):
    train(recipe(), tmp_path / "run")
    (tmp_path / "run/checkpoints").rename(tmp_path / "elsewhere")
    before = sorted(p.name for p in (tmp_path / "elsewhere").iterdir())
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderError) as caught:
        train(recipe(), tmp_path / "run", resume=True)
    assert caught.value.code == "link"
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == before
    (tmp_path / "run/checkpoints").unlink()
    (tmp_path / "run/checkpoints").mkdir()
    for kept in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "run/checkpoints" / kept.name).symlink_to(kept)
    with pytest.raises(FolderError) as caught:
        train(recipe(), tmp_path / "run", resume=True)
    assert caught.value.code == "link"


def test_a_run_folder_that_is_a_link_itself_is_used(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/data").symlink_to("/nowhere")  # none of a run's
    train(recipe(), tmp_path / "run")
    assert train(recipe(), tmp_path / "run", resume=True).resumed_at
    assert (tmp_path / "disk/results.json").exists()


def test_a_folder_that_leads_nowhere_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "run").symlink_to(tmp_path / "nothing")
    codes = codes_of("train", monkeypatch)
    assert cli.run(["train", str(write(tmp_path / "r.yaml")), "--out", str(tmp_path / "run")]) == 2
    assert codes == ["out-not-writable"]
