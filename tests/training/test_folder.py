"""The folder of a run: events, checkpoints, and what is taken away again."""

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import torch

from recipes_for_tests import write
from refusals import code_of, refused
from trainability import cli
from trainability.errors import FolderError
from trainability.training.folder import RunFolder, read_events
from trainability.training.places import checkpoints


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def put(folder: Path, state: object) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / f"checkpoints/step-00000001-{digest}.pt").write_bytes(buffer.getvalue())


def test_a_checkpoint_that_would_run_code_is_neither_written_nor_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder(tmp_path / "run", {}, {}) as folder:
        assert code_of(lambda: folder.save({"steps": 1, "thing": Harmful()})) == "state-unsafe"
        assert not list((tmp_path / "run").glob("checkpoints/*"))
        put(tmp_path / "run", {"steps": 1, "thing": Harmful()})
        assert code_of(folder.newest) == "state-unsafe"
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("state", "code"), [([1], "state-damaged"), ({"step": 1}, "state-damaged"), ({"steps": 1}, "other-recipe")]
)
def test_what_is_no_checkpoint_of_this_run_is_refused(tmp_path, state, code):
    with RunFolder(tmp_path / "run", {}, {}) as folder:
        put(tmp_path / "run", state)
        with refused(FolderError, code):
            folder.newest()


def test_two_checkpoints_are_kept_and_the_damaged_are_set_aside(tmp_path):
    with RunFolder(tmp_path / "run", {"a": 1}, {}) as folder:
        for step in (1, 2, 3):
            folder.save({"steps": step, "x": torch.full((3,), float(step))})
        assert len(checkpoints(tmp_path / "run")) == 2
        newest, older = checkpoints(tmp_path / "run")
        newest.write_bytes(newest.read_bytes()[:-10])
        state, damaged = folder.newest()
        assert (state["steps"], damaged) == (2, [newest.name])
        assert torch.equal(state["x"], torch.full((3,), 2.0))
        assert newest.with_suffix(".damaged").exists()
        older.unlink()
        assert folder.newest() == (None, [])


def test_events_after_the_step_of_a_resumption_are_void(tmp_path):
    with RunFolder(tmp_path / "run", {}, {}) as folder:
        folder.note("started", step=0)
        for step in (1, 2, 3):
            folder.note("losses", step=step, loss=[float(step), float("nan")])
        folder.note("resumed", step=1)
        folder.note("losses", step=2, loss=[20.0, float("inf")])
    events = tmp_path / "run/events.jsonl"
    with events.open("a") as log:
        log.write('[1]\n{"event": "losses", "step": "a"}\n{"event": "los')
    with RunFolder(tmp_path / "run", {}, {}, "resume") as folder:
        folder.note("losses", step=3, loss=[30.0, None])
    found = read_events(events)
    assert [(e["event"], e["step"]) for e in found] == [
        ("started", 0), ("losses", 1), ("resumed", 1), ("losses", 2), ("losses", 3)
    ]  # fmt: skip
    assert found[1]["loss"] == [1.0, None]
    json.loads(events.read_text().splitlines()[1], parse_constant=pytest.fail)


def test_leftovers_of_a_process_that_was_killed_while_writing_go(tmp_path):
    with RunFolder(tmp_path / "run", {}, {}) as folder:
        folder.save({"steps": 1})
    (tmp_path / "run/checkpoints/.step-00000002.pt.abc").write_bytes(b"half")
    RunFolder(tmp_path / "run", {}, {}, "resume").close()
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1


def test_what_is_discarded_leaves_what_was_there(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    for name in ("run", "new"):
        folder = RunFolder(tmp_path / name, {}, {})
        folder.write("remedies.json", [])
        folder.save({"steps": 0})
        folder.close()
        folder.discard()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["run", "run/notes.txt"]


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tmp_path, capsys):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "run").mkdir(mode=0o500)
    assert cli.run(["train", str(write(tmp_path / "r.yaml")), "--out", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
