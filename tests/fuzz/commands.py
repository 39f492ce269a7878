"""The command line, called within the process, with good and bad words."""

import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, cast
from unittest.mock import patch

from trainability import cli
from trainability.errors import TrainabilityError

from .core import Case, Fault
from .files import check_whole
from .texts import SCALARS, assignments, settings, spoil, torn, written


class Reached(BaseException):
    """All checks were passed, and training would begin."""


def command(words: list[str]) -> int:
    """Call the program; its exit code, if that is none of a refusal.

    Raises:
        TrainabilityError: it was refused in one sentence.
        Fault: it was refused by more or less than one sentence, or ended in another way.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run(words)
    printed, message = _written(out), _written(err)
    said = [line for line in message.splitlines() if line.strip()]
    if code not in (0, 1, 2, 130):
        raise Fault("exit", f"code {code}")
    if "Traceback" in message:
        raise Fault("exit", "a traceback")
    if code == 2 and words and (len(said) != 1 or not said[0].startswith("trainability: ")):
        raise Fault("exit", f"refused in {len(said)} lines")
    if any(not (character.isprintable() or character in "\n\t") for character in message + printed):
        raise Fault("printed", "characters that control a terminal, or cannot be printed")
    if code == 2:
        raise TrainabilityError(said[0] if said else "help", code="exit code 2")
    return code


def _written(file: io.TextIOWrapper) -> str:
    file.flush()
    return cast(io.BytesIO, file.buffer).getvalue().decode()


FLAGS: dict[str, list[str]] = {
    "--data": ["digits"],
    "--model": ["fnn", "cnn"],
    "--depth": ["1", "2"],
    "--width": ["2", "4"],
    "--lr": ["1e-3", "0.1"],
    "--epochs": ["1", "2"],
    "--seeds": ["1", "2", "[0, 3]"],
    "--device": ["cpu"],
    "--out": ["out", "a/b", "./x"],
}
COMPARE: dict[str, list[str]] = {
    **FLAGS,
    "--depth": ["1", "2", "1,2", " 1 , 2"],
    "--lr": ["1e-3", "0.1,0.01"],
    "--remedies": ["default", "default,he", "lbe", "tat+lbe", "ic", "layernorm", "residual", "[[he, {name: lbe}]]"],
}
SWITCHES = ["--json", "--print-config", "--overwrite"]
SETTINGS = [
    *("batch_size=256", "batch_size=256,512", "model.nonlinearity=relu,tanh", "data.held_out=100", "probes=0"),
    *("optimizer.name=adam,sgd", "schedule.kind=cosine", "remedies.lbe.beta=0,0.2", "engine.precision=64-true"),
    *("data.augment=true,false", "remedies.ic.keep=0.9", "engine.threads=1"),
]
WORDS = [
    *("", " ", "a", "-1", "0", "1", "2.5", "1e400", "nan", "inf", "9" * 400, "1,", ",", "1,,2", "1,1", "a,b", "0x4"),
    *("true", "é", "\x00"),
    *("\ud800", "\x1b[31m", "a\nb", "--", "-", "--help", "-x", "1e-3", "1_000", "١", "a" * 3000, "*", "$HOME", "~"),
    *("..", "/dev/null"),
    *("mnist", "cifar10", "folder", "resnet", "cuda", "cuda:0", "cuda:99", "mps", "xpu", "meta", "cpu:0", "tat+tat"),
    *("he+orthogonal", "+"),
    *("file.txt", "file.txt/x", "a" * 300, "/proc/x", "/dev/null/x", "bad.yaml", "."),
    *("=", "a=", "=a", "a=b", "model.depht=3", "remedies.lbe.bta=1", "model=cnn", "model={name: cnn}", "compare=1"),
    *("sweep={}", "compare.remedies=he", "depth=3", "data=3", "epochs=1,2", "seeds=1,2", "optimizer.options={a: 1}"),
]
MISTYPED = ["--nothing", "--dept", "--out=", "--set", "--config", "--resume", "--workers", "--json=1", "--alpha"]


def flags(rng: random.Random) -> Case:
    """A call of the program: half of them as they should be; a few of these train."""
    name = rng.choices(["compare", "train", "sweep", "other"], weights=[10, 7, 3, 1])[0]
    wrong = rng.random() < 0.42
    files = {"file.txt": b"x", "bad.yaml": torn(rng, "epochs: 1\n")}
    trains = rng.random() < 0.03
    if name == "compare":
        words = _compare(rng, trains, files)
    elif name == "other":
        words = [*rng.choice([[], ["--version"], ["--help"], ["train", "--help"], ["nothing"], ["compare", "--help"]])]
    else:
        words = _of_recipe(rng, name, trains, files)
    for _ in range(rng.choice([1, 1, 2]) if wrong and not trains else 0):
        _spoil(rng, words)
    files = {file: content for file, content in files.items() if any(file in word for word in words)}
    text = f"trainability {words!r} with {files!r}"

    def run(accept: Callable[[], None]) -> None:
        from .recipes import folder

        with folder() as place, _stopping(not trains):
            for file, content in files.items():
                (place / file).write_bytes(content)
            try:
                command([name, *words] if name != "other" else words)
                accept()
            except Reached:
                accept()
            finally:
                check_whole(place, set(files))

    return Case(text, run)


def _compare(rng: random.Random, trains: bool, files: dict[str, bytes]) -> list[str]:
    chosen = {flag: rng.choice(values) for flag, values in COMPARE.items() if rng.random() < 0.3}
    if trains:
        chosen |= {
            "--depth": "1",
            "--width": "4",
            "--epochs": "1",
            "--seeds": "1",
            "--lr": "0.01",
        }
        chosen["--remedies"] = rng.choice(["default", "he", "lbe", "ic", "layernorm"])
    words = [word for pair in chosen.items() for word in pair]
    words += ["batch_size=512"] if trains else [setting for setting in SETTINGS if rng.random() < 0.05]
    words += [switch for switch in SWITCHES if rng.random() < 0.07]
    if rng.random() < 0.2 and not trains:
        content = rng.choice(
            [
                *("epochs: 3\n", "model: {depth: [1, 2]}\n", "optimizer: {lr: 1e-3}\n", "remedies: [he]\n"),
                *("compare: {remedies: [he]}\n", f"model: {{depth: {rng.choice(SCALARS)}}}\n"),
                f"compare: {{remedies: {rng.choice(SCALARS)}}}\n",
            ]
        )
        files["c.yaml"] = content.encode("utf-8", "surrogatepass")
        words += ["--config", "c.yaml"]
    return words


def _of_recipe(rng: random.Random, name: str, trains: bool, files: dict[str, bytes]) -> list[str]:
    made = settings(rng)
    made.pop("sweep", None)
    made.pop("compare", None)
    if name == "sweep":
        made["sweep"] = rng.choice(
            ["{parameters: {remedies.lbe.alpha: [0.3, 0.5]}}", "{parameters: {optimizer.lr: [0.1, 0.01]}}"]
        )
        made.pop("loggers", None)
    if rng.random() < 0.15:
        spoil(rng, made)
    if trains:
        made |= {
            "model": {"depth": "1", "width": "4"},
            "epochs": "1",
            "batch_size": "512",
            "seeds": "1",
            "remedies": "null",
        }
        made["engine"] = {"compile": "'off'", "threads": "1"}
    files["r.yaml"] = written(rng, made).encode("utf-8", "surrogatepass")
    words = [rng.choice(["r.yaml", "--config=r.yaml"])]
    words += [] if trains else assignments(rng)
    words += [] if trains else [word for pair in FLAGS.items() if rng.random() < 0.05 for word in (pair[0], pair[1][0])]
    words += ["--out", rng.choice(COMPARE["--out"])] if rng.random() < 0.7 and "--out" not in words else []
    words += ["--json"] if rng.random() < 0.1 else []
    if name == "train" and rng.random() < 0.05:
        words.append("--resume")
    if name == "sweep" and rng.random() < 0.1:
        words += [
            "--storage",
            rng.choice(["sqlite:///s.db", "sqlite://", "nothing://x", "", "sqlite:////dev/null/x.db", "\x00", "a"]),
        ]
    return words


def _spoil(rng: random.Random, words: list[str]) -> None:
    """Exchange, add, drop or repeat a word."""
    at = rng.randrange(len(words) + 1)
    how = rng.randrange(6)
    if how == 0 or not words:
        words.insert(at, rng.choice([*WORDS, *SWITCHES, *COMPARE, *MISTYPED]))
    elif how == 1:
        words.pop(at - 1)
    elif how == 2:
        words.append(words[at - 1])
    else:
        words[at - 1] = rng.choice(WORDS)


@contextmanager
def _stopping(wanted: bool) -> Iterator[None]:
    """End a command where its training would begin."""

    def reached(*_: Any, **__: Any) -> Any:
        raise Reached

    if not wanted:
        yield
        return
    places = ("cli.experiment.run", "cli.sweep.work", "cli.sweep._supervise")
    patches = [patch(f"trainability.{place}", reached) for place in places]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
