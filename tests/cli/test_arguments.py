"""Help, completion and refusals of the command line, none of which loads torch."""

import re
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from trainability import cli
from trainability.cli.arguments import ExperimentCommand
from trainability.data import registry as data
from trainability.experiments.reference import settings
from trainability.models import registry as models
from trainability.remedies import names

COMMANDS = ("train", "compare", "sweep")
# After a command, in a process of its own: what is loaded that takes long.
HEAVY = """
import sys
sys.argv = ["trainability", *{words!r}]
from trainability.__main__ import main
try:
    main()
except SystemExit as end:
    print("ended with", end.code)
print("loaded", sorted({{"torch", "numpy", "optuna", "plotly", "lightning_fabric", "sklearn"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["nothing"], 2),
        *[([command, "--help"], 0) for command in (*COMMANDS, "recipe")],
        *[(["recipe", command], 0) for command in COMMANDS],
        (["recipe", "trian"], 2),
        (["compare", "--print-config"], 0),
        (["compare", "--widht", "3"], 2),
        (["compare", "--remedies", "lba"], 2),
        (["compare", "--remedies", "tat+he"], 2),
        (["compare", "remedies.lbe.bata=1"], 2),
        (["compare", "model.depht=3"], 2),
        (["train", "data.name=mnist"], 2),
        (["train", "epochs=0"], 2),
        (["train", "missing.yaml"], 2),
        (["train", "--resume", "--out", "nowhere"], 2),
        (["sweep"], 2),
    ],
    ids=str,
)
def test_what_trains_nothing_loads_nothing_heavy(words, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HEAVY.format(words=words)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert lines[-2:] == [f"ended with {code}", "loaded []"], done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    if code == 2 and words:
        assert len(done.stderr.strip().splitlines()) == 1
        assert lines[:-2] == []


def command(name: str) -> click.Command:
    return cli.app.commands[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_shows_every_setting_once_with_its_default(name, capsys):
    assert cli.run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    words = shown.replace("\n", " ").split()
    for setting in settings():
        assert any(word.startswith(f"{setting.name}=") for word in words), setting.name
    assert isinstance(command(name), ExperimentCommand)
    assert "optimizer.lr=0.001" in words
    for flag in ("--data", "--model", "--depth", "--lr", "--seeds", "--resume", "--overwrite", "--json", "--out"):
        assert flag in words


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_what_a_flag_may_be(name, capsys):
    cli.run([name, "--help"])
    shown = capsys.readouterr().out
    flags = shown.partition("Settings with a flag:")[2].partition("Options:")[0]
    for flag, choices in (("data", data.names()), ("model", models.names()), ("device", ("cpu", "cuda", "mps"))):
        text = re.split(r"\n  --", flags.partition(f"--{flag} VALUE")[2])[0]
        assert set(re.findall(r"[\w-]+", text)) >= set(choices)
    listed = shown.partition("Remedies, ")[2].partition("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in listed if line[2] != " "] == list(names())
    assert "Undefined" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def completed(words: list[str], begun: str) -> list[str]:
    complete = ShellComplete(cli.app, {}, "trainability", "_TRAINABILITY_COMPLETE")
    return [item.value for item in complete.get_completions(words, begun)]


def test_the_shell_completes_commands_settings_and_their_words():
    assert set(completed([], "")) == {*COMMANDS, "recipe"}
    assert completed(["recipe"], "c") == ["compare"]
    assert set(completed(["train"], "model.de")) >= {"model.depth="}
    assert completed(["train"], "schedule.kind=c") == ["schedule.kind=constant", "schedule.kind=cosine"]
    assert set(completed(["compare", "--remedies"], "")) == set(names())
    assert completed(["compare", "--remedies"], "he,tat,la") == ["he,tat,layernorm"]
    assert completed(["compare", "--model"], "res") == ["resnet"]
    assert "--overwrite" in completed(["sweep"], "--o")


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_few_and_the_same_for_all(name):
    flags = {flag for param in command(name).params for flag in param.opts if flag.startswith("--")}
    own = {"--workers", "--storage", "--worker"} if name == "sweep" else set()
    settings_of = {"--data", "--data-dir", "--model", "--depth", "--width", "--lr", "--epochs", "--seeds", "--remedies"}
    assert flags == settings_of | own | {
        "--device", "--config", "--out", "--resume", "--overwrite", "--json", "--print-config"
    }  # fmt: skip
