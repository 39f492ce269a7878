"""Checkpoints that are not those of the training that is to go on."""

import hashlib
import io
import warnings
from pathlib import Path

import pytest
import torch

from recipes_for_tests import StopError, last_state, recipe, resumed_at, stop_at
from refusals import refused
from trainability.errors import FolderError
from trainability.experiments.run import run
from trainability.training.folder import RunFolder, read_events


def put(folder: Path, state: object) -> Path:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    path = folder / f"checkpoints/step-00099999-{digest}.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def changed(state: dict, path: str, value: object) -> dict:
    """A copy of a state with another value at a path."""
    state = torch.load(_saved(state), weights_only=True)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = state
    for part in way:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return state


def _saved(state: object) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


WRONG = [
    *((key, KeyError) for key in ("steps", "alive", "execution", "weights", "lbe", "updates", "losses", "histories")),
    *(("steps", value) for value in ("a", -5, 10**6, True, None, 1.5)),
    *(("weights", value) for value in ([], {}, {"linear1.weight": 1})),
    *(("weights/linear1.weight", value) for value in (torch.zeros(2), "a", None, torch.zeros(2, 8, 64).double())),
    *(("alive", value) for value in ([True], [1, 1], "yes", [True] * 3)),
    *(("execution", value) for value in ({}, {"members": "x", "compiled": False}, {"members": "vmap", "compiled": 1})),
    *(("lbe", value) for value in (None, [], {"alpha": torch.zeros(1)})),
    *(("updates", value) for value in ({}, [], {"optimizers": [], "schedulers": []})),
    ("updates/optimizers/0", {}),
    ("updates/optimizers/0/state", []),
    ("updates/optimizers/0/state/0/exp_avg", torch.zeros(3)),
    ("updates/optimizers/0/state/0/step", "a"),
    ("updates/optimizers/0/state/0/exp_avg_sq", KeyError),
    ("updates/optimizers/0/state/0", {}),
    ("updates/optimizers/0/state/99", {}),
    ("updates/optimizers/0/param_groups", []),
    ("updates/optimizers/0/param_groups/0/lr", "fast"),
    ("updates/optimizers/0/param_groups/0/betas", 0.9),
    ("updates/optimizers/0/param_groups/0/params", [0, 0, 0, 0, 0, 0]),
    ("updates/schedulers/0/step", 5),
    ("updates/schedulers/0/last_epoch", "now"),
    ("losses", [torch.zeros(5)]),
    ("times", ["a"]),
    ("histories", []),
    ("histories/0", {}),
    ("histories/0/seed", 7),
    ("histories/0/scores", [{"step": 1, "val": 2}]),
    ("histories/0/losses", [{"step": "a", "loss": 1.0, "lbe": None}]),
    ("histories/0/layers", "linear1"),
    ("histories/0/more", 1),
]


MADE = recipe(remedies="lbe", schedule={"kind": "cosine"}, checkpoint_every=5)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was killed, and its last state."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(StopError):
        run(MADE, folder, progress=stop_at(12))
    return folder, last_state(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done, and its last state."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run(MADE, folder)
    return folder, last_state(folder)


def assert_refused(folder: Path, state: object) -> None:
    """The state is not taken, and nothing in the folder changes."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    added = put(folder, state)
    try:
        with pytest.raises(FolderError) as caught:
            run(MADE, folder, existing="resume")
    finally:
        added.unlink()
    assert caught.value.code in ("state-damaged", "other-networks")
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_state_that_is_none_is_refused_before_any_of_it_is_used(begun, path, value):
    folder, state = begun
    assert_refused(folder, changed(state, path, value))


@pytest.mark.parametrize(
    ("path", "value"), [w for w in WRONG if w[0].startswith("histories/") and w[1] != {}] + [("histories", [])]
)
def test_damaged_histories_of_a_run_that_is_done_are_refused(finished, path, value):
    folder, state = finished
    assert_refused(folder, changed(state, path, value))
    extra = changed(state, "histories", [*state["histories"], state["histories"][0]])
    assert_refused(folder, extra)


def test_the_state_as_it_was_is_taken(begun):
    folder, state = begun
    comparison = run(MADE, folder, existing="resume")
    assert resumed_at(folder) == state["steps"] == 10
    assert [history.status for history in comparison.histories] == ["done", "done"]


@pytest.mark.parametrize("content", [[1, 2], 5, "a", None, torch.zeros(2), {}, {"recipe": "x"}, {1: 2}])
def test_what_is_no_state_at_all_is_refused(tmp_path, content):
    with RunFolder(tmp_path, {}, {}) as folder:
        put(tmp_path, content)
        with refused(FolderError, "state-damaged"):
            folder.newest()


@pytest.mark.parametrize("payload", [b"\x80\x02cos\nsystem\n(S'touch RAN'\ntR.", b"", b"PK\x03\x04", b"\x80\x04K\x05."])
def test_files_that_are_not_torchs_are_refused_without_a_warning(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    with RunFolder(tmp_path / "run", {}, {}) as folder:
        digest = hashlib.sha256(payload).hexdigest()[:16]
        (tmp_path / "run/checkpoints").mkdir()
        (tmp_path / f"run/checkpoints/step-00000001-{digest}.pt").write_bytes(payload)
        with warnings.catch_warnings(record=True, action="always") as told, pytest.raises(FolderError) as caught:
            folder.newest()
    assert caught.value.code in ("state-unsafe", "state-damaged")
    assert not told
    assert not (tmp_path / "RAN").exists()


def test_files_with_other_names_are_no_checkpoints(tmp_path):
    with RunFolder(tmp_path / "run", recipe().resolved(), {}) as folder:
        (tmp_path / "run/checkpoints").mkdir()
        for name in ("step-x.pt", "step-1-2.pt", "mine.pt"):
            (tmp_path / "run/checkpoints" / name).write_bytes(b"x")
        assert folder.newest() == (None, [])
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"step-x.pt", "step-1-2.pt", "mine.pt"}


def test_events_of_another_hand_are_passed_over(tmp_path):
    lines = ['{"event": "a", "step": 1}', "[]", "5", "{", '{"event": "resumed"}', '{"step": "x"}', "[" * 10**5]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["resumed"]
