"""Recipes as YAML, and run folders that were tampered with, which are resumed."""

import copy
import functools
import hashlib
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainability.cli.request import recipe_and_changes
from trainability.experiments.build import build_model
from trainability.experiments.program import Program
from trainability.experiments.reading import Command, read_recipe
from trainability.experiments.recipe import Recipe
from trainability.training.places import keep_recipe

from .commands import command
from .core import Case, Fault
from .files import check_whole
from .texts import SCALARS, assignments, settings, spoil, torn, written


def recipes(rng: random.Random) -> Case:
    """A recipe that is read, and perhaps built; or a run that is resumed."""
    if rng.random() < 0.08:
        return resumed(rng)
    made = settings(rng)
    wrong = rng.random() < 0.38
    for _ in range(rng.choice([1, 1, 2]) if wrong else 0):
        spoil(rng, made)
    text = written(rng, made)
    content = torn(rng, text) if wrong and rng.random() < 0.35 else text.encode("utf-8", "surrogatepass")
    given, building = assignments(rng), rng.random() < 0.2
    kind: Command = rng.choice(["train", "compare"])
    if made.get("sweep", "null") != "null" or "compare" in made:
        kind = "sweep" if made.get("sweep", "null") != "null" else "compare"

    def run(accept: Callable[[], None]) -> None:
        with folder() as place:
            (place / "r.yaml").write_bytes(content)
            _, changes = recipe_and_changes(given, {})
            recipe = read_recipe(place / "r.yaml", changes, kind)
            accept()
            _keep(recipe, place / "run", kind)
            if building or recipe.data.dir is not None:
                program = Program.of(recipe)
                for cell in islice(recipe.cells(), 4):
                    if _is_small(cell.recipe):
                        build_model(cell.recipe, program, 0)

    return Case(f"read_recipe({content!r}, {given!r}, {kind!r})", run)


def _is_small(recipe: Recipe) -> bool:
    depth, width = (getattr(recipe.model, name, 0) for name in ("depth", "width"))
    return bool(depth * width**2 < 10**5)


def _keep(recipe: Recipe, place: Path, kind: Command) -> None:
    """Write a recipe as a run does, and read it again."""
    recipe.digest()
    keep_recipe(place, recipe.resolved(), {})
    json.dumps(recipe.resolved())
    if recipe.sweep is None and read_recipe(place / "recipe.yaml", {}, kind) != recipe:
        raise Fault("changed", "a recipe that was written and read again is another one")


@contextmanager
def folder() -> Iterator[Path]:
    """A folder to be in, which is gone afterwards."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


RUN = """
model: {depth: 1, width: 4}
remedies: lbe
epochs: 2
batch_size: 512
probes: 1
engine: {compile: 'off', threads: 1}
"""


@functools.cache
def finished() -> dict[str, bytes]:
    """The files of a run that was trained."""
    with folder() as place:
        (place / "r.yaml").write_text(RUN)
        command(["train", "r.yaml", "--out", "run"])
        return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def resumed(rng: random.Random) -> Case:
    """A run of which one file was changed."""
    which = rng.choice(
        [
            *("state", "state", "state", "state", "bytes", "name", "recipe.yaml", "events.jsonl", "results.json"),
            *("environment.json", "remedies.json", "report.html"),
        ]
    )
    number = rng.randrange(2**32)

    def run(accept: Callable[[], None]) -> None:
        files = dict(finished())
        with folder() as place:
            tampered, what = _tampered(random.Random(number), which, files)
            for name, content in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
            try:
                command(["train", "r.yaml", "--out", "run", "--resume"])
                accept()
            except Exception as error:
                error.add_note(what)
                raise
            finally:
                check_whole(place, {tampered, f"{Path(tampered).stem}.damaged"})

    return Case(f"resumed: {which}, {number}", run)


def _tampered(rng: random.Random, which: str, files: dict[str, bytes]) -> tuple[str, str]:
    """Change one file, in place; return its name, and what was done to it."""
    what = which
    newest = max(name for name in files if name.endswith(".pt"))
    if which in ("state", "bytes", "name"):
        content = files.pop(newest)
        if which == "state":
            state, what = _changed(rng, torch.load(io.BytesIO(content), weights_only=True))
            content = _saved(state)
        elif which == "bytes":
            pickles = [b"\x80\x04N.", b"cos\nsystem\n(S'true'\ntR."]
            content = rng.choice([b"", b"PK", content[: rng.randrange(len(content))], *pickles])
            what = f"{len(content)} bytes: {content[:30]!r}"
        name = rng.choice(
            [f"step-00000006-{hashlib.sha256(content).hexdigest()[:16]}.pt"] * 3 + [newest.rpartition("/")[2]]
        )
        if which == "name":
            name = rng.choice(
                ["step-.pt", "step-a-b.pt", "step-1.pt", f"step--5-{hashlib.sha256(content).hexdigest()[:16]}.pt"]
            )
        files["run/checkpoints/" + name] = content
        return name, what
    content = files["run/" + which]
    lines = content.splitlines(keepends=True)
    lines[rng.randrange(len(lines))] = (
        rng.choice([*SCALARS, "{}", '{"event": 5}', '{"event": "resumed"}', "null", "3"]).encode(
            "utf-8", "surrogatepass"
        )
        + b"\n"
    )
    cut = content[: rng.randrange(len(content))]
    files["run/" + which] = made = rng.choice([b"".join(lines), b"".join(lines), cut, b"\xff\xfe", b""])
    return which, f"{which}: {made[-200:]!r}"


def _saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _changed(rng: random.Random, state: Any) -> tuple[Any, str]:
    """A state in which one thing, at any depth, is another; and which."""
    if rng.random() < 0.05:
        other = rng.choice([None, [], {}, 3, "a", torch.zeros(2), [1, 2]])
        return other, f"state = {other!r}"
    state = copy.deepcopy(state)
    place: Any = state
    path = "state"
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        keys = [key for key in keys if key != "recipe"] or keys
        key = rng.choice(keys)
        path += f"[{key!r}]"
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            place = inner
            continue
        if isinstance(place, dict) and rng.random() < 0.2:
            del place[key]
            return state, f"del {path}"
        place[key] = _another(rng, inner)
        return state, f"{path} = {place[key]!r}"


def _another(rng: random.Random, value: Any) -> Any:
    if isinstance(value, Tensor) and rng.random() < 0.6:
        return rng.choice(
            [
                value[None],
                value.to(torch.complex64),
                torch.full_like(value, 2).to(torch.int64),
                value.flatten()[:0],
                value.double(),
                value.to_sparse(),
                torch.zeros(2),
            ]
        )
    return rng.choice(
        [None, -5, 0, 10**30, "a", 2.5, float("nan"), [], {}, [1], torch.zeros(3), True, b"x", {"a": 1}, (1, 2)]
    )
