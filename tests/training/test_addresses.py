"""Addresses of databases and servers, and the passwords in them."""

import json
import subprocess

import pytest

from recipes_for_tests import SWEEP, recipe, write
from refusals import codes_of
from trainability import cli
from trainability.errors import ConfigError
from trainability.experiments.reading import read_recipe
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import open_study
from trainability.experiments.validation import validated
from trainability.report.sweep import render_sweep
from trainability.training import loggers
from trainability.training.addresses import without_password, without_secrets
from trainability.training.places import keep_recipe

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
        ({}, [f"sweep.storage={json.dumps(address)}"]),
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
        assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), setting]) == 2
        assert "s3cret" not in capsys.readouterr().err
    assert cli.run(["train", address]) == 2
    assert "s3cret" not in capsys.readouterr().err


def test_a_kept_recipe_asks_for_the_password_that_it_does_not_hold(tmp_path, monkeypatch):
    made = recipe(sweep={**SWEEP, "storage": "postgresql+psycopg://me:s3cret@127.0.0.1:1/db"})
    keep_recipe(tmp_path / "out", made.resolved(), {})
    keep_recipe(tmp_path / "out", made.resolved(), {})  # the same again
    again = read_recipe(tmp_path / "out/recipe.yaml", {}, "sweep")
    assert again.digest() == made.digest()
    codes = codes_of(monkeypatch)
    call = ["sweep", str(tmp_path / "out/recipe.yaml"), "--out", str(tmp_path / "out"), "--resume"]
    assert cli.run(call) == 2
    assert codes == ["password-hidden"]
    assert cli.run([*call, "--storage", f"sqlite:///{tmp_path / 'study.db'}"]) == 0
    monkeypatch.setenv("TRAINABILITY_STORAGE", f"sqlite:///{tmp_path / 'study.db'}")
    assert cli.run(call) == 0
    assert "s3cret" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.*"))


def test_workers_are_told_addresses_and_settings_out_of_sight_and_import_nothing_from_the_folder(tmp_path, monkeypatch):
    (tmp_path / "optuna.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nraise SystemExit(3)\n")
    file = write(tmp_path / "r.yaml", sweep=SWEEP)
    storage = f"sqlite:///{tmp_path / 's3cret.db'}"
    seen, real = [], subprocess.Popen

    def watched(command, **options):
        if "--worker" in command:
            seen.append(" ".join(command))
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", watched)
    monkeypatch.chdir(tmp_path)
    call = ["sweep", str(file), "--out", "out", "--workers", "2", "epochs=1"]
    assert cli.run([*call, f"sweep.storage={storage}"]) == 0
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
        loggers.Logger("tensorboard", tmp_path, {})
    assert caught.value.code == "logger"
    assert "s3cret" not in str(caught.value)
    assert "tracking.example" in str(caught.value)


def test_a_storage_is_opened_by_what_is_given(tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_study(recipe(sweep=SWEEP), "postgresql+psycopg://me:***@db/x")
    assert caught.value.code == "password-hidden"
