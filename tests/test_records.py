"""What a run keeps and reads: no code of a stranger's folder runs, no password is kept, no file elsewhere changes."""

import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from refusals import codes_of
from trainability import cli
from trainability.addresses import without_password, without_secrets
from trainability.errors import ArgumentError, ConfigError, FolderError
from trainability.experiments.environment import describe_environment
from trainability.experiments.recipe import Recipe, read_recipe
from trainability.experiments.study import open_study
from trainability.experiments.train import train
from trainability.experiments.validate import validated
from trainability.report.sweep import render_sweep
from trainability.training import loggers
from trainability.training.folder import RunFolder, checkpoints, keep_recipe, read_events

SMALL = {"model": {"depth": 2, "width": 8}, "epochs": 2, "probes": 1, "seeds": 2, "engine": {"compile": "off"}}
SWEEP = {"parameters": {"optimizer.lr": [0.1, 0.01]}}


def recipe(**changes: object) -> Recipe:
    return validated(Recipe, {**SMALL, **changes})


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def set_traps(folder: Path, trap: str) -> None:
    """Whatever of a repository's configuration git runs when it is asked for a commit or for changed files."""
    config = folder / git(folder, "rev-parse", "--git-dir")
    for key in ("core.fsmonitor", "core.pager", "pager.status", "diff.external", "core.sshCommand", "alias.status"):
        git(folder, "config", key, f"{trap}; false" if key != "alias.status" else f"!{trap}")
    for driver in ("one", "two"):
        for kind in ("clean", "smudge", "process"):
            git(folder, "config", f"filter.{driver}.{kind}", f"{trap}; cat")
        git(folder, "config", f"diff.{driver}.textconv", trap)
    (config / "info").mkdir(exist_ok=True)
    (config / "info/attributes").write_text("*.yaml filter=two diff=two\n")
    (config / "hooks").mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "pre-commit", "fsmonitor-watchman"):
        (config / "hooks" / name).write_text(f"#!/bin/sh\n{trap}\n")
        (config / "hooks" / name).chmod(0o755)


@pytest.mark.parametrize("worktree", [False, True])
def test_asking_git_runs_nothing_that_a_folder_names(tmp_path, monkeypatch, worktree):
    home, trap = tmp_path / "home", f"touch {tmp_path}/RAN"
    monkeypatch.setenv("HOME", str(tmp_path))
    home.mkdir()
    git(home, "init", "-q")
    (home / ".gitattributes").write_text("*.txt filter=one diff=one\n")
    for name in ("recipe.yaml", "kept.txt", "changed.txt"):
        (home / name).write_text("before")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "x")
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    git(inner, "commit", "-qm", "x", "--allow-empty")
    git(home, "submodule", "--quiet", "add", str(inner), "inner")
    git(home, "commit", "-qm", "y")
    commit = git(home, "rev-parse", "HEAD")
    folder = home
    if worktree:
        folder = tmp_path / "tree"
        git(home, "worktree", "add", "-q", str(folder), "HEAD")
    for name in ("recipe.yaml", "kept.txt"):  # git looks into them again, as their times differ
        os.utime(folder / name, (1, 1))
    (folder / "changed.txt").write_text("after!")
    (folder / "new.txt").write_text("new")
    set_traps(home / "inner", trap)
    set_traps(home, trap)
    (tmp_path / "RAN").unlink(missing_ok=True)
    index = Path(git(folder, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    before = index.read_bytes()
    monkeypatch.chdir(folder)
    found = describe_environment()
    assert not (tmp_path / "RAN").exists()
    assert found["git commit"] == commit
    assert found["git changed files"] == "2"
    assert index.read_bytes() == before
    subprocess.run(["git", "status"], cwd=folder, capture_output=True, check=False)
    assert (tmp_path / "RAN").exists()  # so the traps are set


def test_a_folder_without_a_commit_or_a_repository_has_no_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert not any("git" in key for key in describe_environment())
    git(tmp_path, "init", "-q")
    assert not any("git" in key for key in describe_environment())


SECRETS = [
    "postgresql+psycopg://me:s3cret@127.0.0.1:1/db",
    "postgresql+psycopg://me:a@s3cret@127.0.0.1:1/db",
    "postgresql+psycopg://me:a%40s3cret@127.0.0.1:1/db",
    "postgresql+psycopg://me:a/s3cret@127.0.0.1:1/db",
    "postgresql+psycopg://me:a?s3cret@127.0.0.1:1/db",
    "postgresql+psycopg://me:a#s3cret@127.0.0.1:1/db",
    "postgresql+psycopg://me:s3cret/db",
    "postgresql+psycopg://127.0.0.1:1/db?user=u&password=s3cret",
    "postgresql+psycopg://127.0.0.1:1/db?user=u&password=s3cret@x",
    "postgresql+psycopg://127.0.0.1:1/db?PassWord=s3cret&sslmode=prefer",
    "postgresql+psycopg://127.0.0.1:1/db?p%61ssword=s3cret",
    "postgresql+psycopg://127.0.0.1:1/db?passfile=/s3cret",
    "postgresql+psycopg://127.0.0.1:1/db?sslkey=/s3cret&sslpassword=s3cret",
    "postgresql+psycopg://127.0.0.1:1/db?token=s3cret",
    "postgresql+psycopg://127.0.0.1:1/db?options=-c%20x=s3cret",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cret",
    "host=127.0.0.1 user=me password=s3cret",
    "sqlite:///file:x?vfs=y&key=s3cret",
]


@pytest.mark.parametrize("address", SECRETS)
def test_no_password_of_an_address_is_shown_or_kept(tmp_path, capsys, address):
    assert "s3cret" not in without_password(address)
    assert "s3cret" not in without_secrets(f"could not connect by {address}: s3cret is wrong", address)
    for kept, args in (
        ({"storage": address}, []),
        ({}, ["--storage", address]),
        ({}, ["--set", f"sweep.storage={json.dumps(address)}"]),
    ):
        file = write(tmp_path / "r.yaml", sweep={**SWEEP, **kept})
        assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), *args]) == 2
        said = capsys.readouterr()
        assert "s3cret" not in said.err + said.out
        written = [p for p in tmp_path.rglob("*") if p.is_file() and p != file]
        assert not any(b"s3cret" in p.read_bytes() for p in written)
    made = recipe(sweep={**SWEEP, "storage": address})
    assert "s3cret" not in json.dumps(made.resolved()) + render_sweep(made, [], [])


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql+psycopg://me@db.example/trials", None),
        ("postgresql+psycopg://me:x@db:5432/trials", "postgresql+psycopg://me:***@db:5432/trials"),
        ("postgresql://me:x@one:1,two:2/trials", "postgresql://me:***@one:1,two:2/trials"),
        (
            "postgresql://me:x@[::1]:5432/trials?sslmode=require",
            "postgresql://me:***@[::1]:5432/trials?sslmode=require",
        ),
        ("sqlite:////home/me@work/study.db", None),
        ("postgresql://db/t?host=/run&user=me", None),
    ],
)
def test_what_is_no_secret_is_shown(address, shown):
    assert without_password(address) == (shown or address)


def test_an_address_in_the_wrong_place_is_not_shown(tmp_path, capsys):
    address = "postgresql://me:s3cret@db/x"
    for content in ({"sweep": address}, {"sweep": {**SWEEP, "storage": [address]}}, {"epochs": address}):
        with pytest.raises(ConfigError) as caught:
            validated(Recipe, content)
        assert "s3cret" not in str(caught.value)
    file = write(tmp_path / "r.yaml", sweep=SWEEP)
    for setting in (address, f"sweep.storage={address}: [", f"sweep={address}"):
        assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), "--set", setting]) == 2
        assert "s3cret" not in capsys.readouterr().err


def test_a_kept_recipe_asks_for_the_password_that_it_does_not_hold(tmp_path, monkeypatch):
    made = recipe(sweep={**SWEEP, "storage": "postgresql+psycopg://me:s3cret@127.0.0.1:1/db"})
    keep_recipe(tmp_path / "out", made.resolved(), {})
    keep_recipe(tmp_path / "out", made.resolved(), {})  # the same again
    again = read_recipe(tmp_path / "out/recipe.yaml")
    assert again.digest() == made.digest()
    codes = codes_of("sweep", monkeypatch)
    call = ["sweep", str(tmp_path / "out/recipe.yaml"), "--out", str(tmp_path / "out")]
    assert cli.run(call) == 2
    assert codes == ["password-hidden"]
    assert cli.run([*call, "--storage", f"sqlite:///{tmp_path / 'study.db'}"]) == 0
    monkeypatch.setenv("TRAINABILITY_STORAGE", f"sqlite:///{tmp_path / 'study.db'}")
    assert cli.run(call) == 0
    assert "s3cret" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.*"))


def test_workers_are_told_addresses_and_settings_out_of_sight_and_import_nothing_from_the_folder(tmp_path, monkeypatch):
    (tmp_path / "yaml.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nraise SystemExit(3)\n")
    file = write(tmp_path / "r.yaml", sweep=SWEEP)
    storage = f"sqlite:///{tmp_path / 's3cret.db'}"
    seen, real = [], subprocess.Popen

    def watched(command, **options):
        if "--worker" in command:
            seen.append(" ".join(command))
        return real(command, **options)

    monkeypatch.setattr("trainability.cli.sweep.subprocess.Popen", watched)
    monkeypatch.chdir(tmp_path)
    call = ["sweep", str(file), "--out", "out", "--workers", "2", "--set", "epochs=1"]
    assert cli.run([*call, "--set", f"sweep.storage={storage}"]) == 0
    assert len(seen) == 2
    assert not any("s3cret" in command for command in seen)
    assert not (tmp_path / "RAN").exists()
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert {run["epochs"] for run in results} == {1}  # so the settings reached the workers


def test_the_error_of_a_logger_is_a_sentence_without_its_servers_password(tmp_path, monkeypatch):
    address = "https://me:s3cret@tracking.example"

    class Failing:
        def __init__(self, folder, config):
            raise RuntimeError(f"API request to {address}/api failed\nand more")

    monkeypatch.setitem(loggers._KINDS, "tensorboard", Failing)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigError) as caught:
        loggers.loggers(["tensorboard"], tmp_path, {})
    assert caught.value.code == "logger"
    assert "s3cret" not in str(caught.value)
    assert "tracking.example" in str(caught.value)


def ended(folder: Path, **changes: object) -> dict:
    train(recipe(**changes), folder)
    return torch.load(checkpoints(folder)[0], weights_only=True)


def put(folder: Path, state: object) -> Path:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    path = folder / f"checkpoints/step-00099999-{digest}.pt"
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
    *((key, KeyError) for key in ("steps", "alive", "execution", "weights", "lbe", "updates", "losses", "records")),
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
    ("updates/optimizers/0/state/99", {}),
    ("updates/optimizers/0/param_groups", []),
    ("updates/optimizers/0/param_groups/0/lr", "fast"),
    ("updates/optimizers/0/param_groups/0/betas", 0.9),
    ("updates/optimizers/0/param_groups/0/params", [0, 0, 0, 0, 0, 0]),
    ("updates/schedulers/0/step", 5),
    ("updates/schedulers/0/last_epoch", "now"),
    ("losses", [torch.zeros(5)]),
    ("times", ["a"]),
    ("records", []),
    ("records/0", {}),
    ("records/0/seed", 7),
    ("records/0/accuracy", [(1, 2)]),
    ("records/0/train_loss", [["a", "b"]]),
    ("records/0/layers", "linear1"),
    ("records/0/more", 1),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its recipe's changes and its last state."""
    changes = {"lbe": {}, "schedule": {"kind": "cosine"}}
    folder = tmp_path_factory.mktemp("run")
    return folder / "run", changes, ended(folder / "run", **changes)


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_state_that_is_none_is_refused_before_any_of_it_is_used(run, path, value):
    folder, changes, state = run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    added = put(folder, changed(state, path, value))
    try:
        with pytest.raises(FolderError) as caught:
            train(recipe(**changes), folder, resume=True)
    finally:
        added.unlink()
    assert caught.value.code in ("state-damaged", "other-networks")
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_the_state_as_it_was_is_taken(run):
    folder, changes, state = run
    assert train(recipe(**changes), folder, resume=True).resumed_at == state["steps"]


@pytest.mark.parametrize("content", [[1, 2], 5, "a", None, torch.zeros(2), {}, {"recipe": "x"}, {1: 2}])
def test_what_is_no_state_at_all_is_refused(tmp_path, content):
    with RunFolder(tmp_path, {}, {}) as folder:
        put(tmp_path, content)
        with pytest.raises(FolderError) as caught:
            folder.newest()
    assert caught.value.code == "state-damaged"


@pytest.mark.parametrize("payload", [b"\x80\x02cos\nsystem\n(S'touch RAN'\ntR.", b"", b"PK\x03\x04", b"\x80\x04K\x05."])
def test_files_that_are_not_torchs_are_refused_without_a_warning(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    with RunFolder(tmp_path / "run", {}, {}) as folder:
        digest = hashlib.sha256(payload).hexdigest()[:16]
        (tmp_path / f"run/checkpoints/step-00000001-{digest}.pt").write_bytes(payload)
        with warnings.catch_warnings(record=True, action="always") as told, pytest.raises(FolderError) as caught:
            folder.newest()
    assert caught.value.code in ("state-unsafe", "state-damaged")
    assert not told
    assert not (tmp_path / "RAN").exists()


def test_files_with_other_names_are_no_checkpoints(tmp_path, capsys):
    with RunFolder(tmp_path / "run", recipe().resolved(), {}) as folder:
        for name in ("step-x.pt", "step-1-2.pt", "mine.pt"):
            (tmp_path / "run/checkpoints" / name).write_bytes(b"x")
        assert folder.newest() == (None, [])
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"step-x.pt", "step-1-2.pt", "mine.pt"}


def test_events_of_another_hand_are_passed_over(tmp_path):
    lines = ['{"event": "a", "step": 1}', "[]", "5", "{", '{"event": "resumed"}', '{"step": "x"}', "[" * 10**5]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["resumed"]


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


def sweep(tmp_path: Path) -> tuple[Path, list[str]]:
    file = write(tmp_path / "s.yaml", sweep=SWEEP, epochs=1)
    return tmp_path / "out/study.db", ["sweep", str(file), "--out", str(tmp_path / "out")]


DAMAGE = [
    "delete from trial_user_attributes where key = 'runs' and trial_id = 1",
    "update trial_user_attributes set value_json = '5' where key = 'runs' and trial_id = 1",
    "update trial_user_attributes set value_json = '[]' where key = 'runs' and trial_id = 1",
    "update trial_user_attributes set value_json = '[{}, {}]' where key = 'runs' and trial_id = 1",
    """update trial_user_attributes set value_json = '[{"status": 1, "val_accuracy": "x", "test_accuracy": []}]'
    where key = 'runs' and trial_id = 1""",
    "update trial_params set param_name = 'model.depth' where trial_id = 1",
    "delete from trial_params where trial_id = 1",
    "delete from trial_values where trial_id = 1",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_trial_of_another_version_is_left_out_by_its_number(tmp_path, capsys, damage):
    import sqlite3

    database, call = sweep(tmp_path)
    assert cli.run(call) == 0
    with sqlite3.connect(database) as connection:
        connection.execute(damage)
    connection.close()
    capsys.readouterr()
    code = cli.run([*call, "--json"])
    said = capsys.readouterr()
    assert {run["trial"] for run in json.loads(said.out)["results"]} == {1}
    assert code == 1
    assert "Trial 0 is left out" in said.err
    assert "Left out, since their records are damaged" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        "update trial_user_attributes set value_json = '{' where key = 'runs'",
        "update trial_params set distribution_json = '{}'",
        "update study_directions set direction = 'MINIMIZE'",
        "update alembic_version set version_num = 'x'",
    ],
)
def test_a_database_that_is_not_ours_is_a_sentence(tmp_path, capsys, monkeypatch, damage):
    import sqlite3

    database, call = sweep(tmp_path)
    assert cli.run(call) == 0
    with sqlite3.connect(database) as connection:
        connection.execute(damage)
    connection.close()
    capsys.readouterr()
    codes = codes_of("sweep", monkeypatch)
    assert cli.run(call) == 2
    assert codes in (["storage"], ["study-foreign"])
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_yaml_is_a_sentence_whatever_is_in_it(tmp_path, monkeypatch):
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


def test_the_code_of_a_setting_survives_the_schema():
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, {"optimizer": {"name": "adam", "options": {"betas": [0.9]}}})
    assert caught.value.code == "optimizer-options"
    with pytest.raises(ArgumentError):
        Recipe().with_values({"nothing.here": 1})
    assert sys.modules["trainability.errors"].ConfigError is ConfigError


def test_a_storage_is_opened_by_what_is_given(tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_study(recipe(sweep=SWEEP), "postgresql+psycopg://me:***@db/x")
    assert caught.value.code == "password-hidden"
