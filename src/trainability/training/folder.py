"""The folder of a run: its recipe, its events and its checkpoints, whole at every moment.

The first process of a run writes to it, and to its loggers; the others have a writer that writes nothing.
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from trainability.errors import ConfigError, FolderError
from trainability.training.files import finite, write_whole
from trainability.training.loggers import Logger
from trainability.training.places import (
    Existing,
    check_existing,
    check_links,
    checkpoints,
    clear,
    keep_recipe,
    step_of,
    without_epochs,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_KEPT = 2  # checkpoints; the older one is for when the newer turns out to be damaged


def hold(path: Path) -> FileLock:
    """Lock a folder for this process, until the lock is released.

    Raises:
        FolderError: another process has it.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderError(
            f"{path} is in use by another process; wait for it or choose another folder", code="folder-locked"
        ) from None
    return lock


class Writer:
    """Writes nothing: what the processes of a run other than the first have in place of a `RunFolder`."""

    def newest(self) -> tuple[dict[str, Any] | None, Sequence[str]]:
        """The state to go on from, and the names of damaged checkpoints that were set aside."""
        return None, ()

    def note(self, event: str, **values: Any) -> None:
        """Write down what happened at a step."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file."""

    def discard(self) -> None:
        """Take away what was written of a run that has trained nothing."""


class RunFolder(Writer):
    """A run's folder, held by one process as long as it is open.

    ``recipe.yaml``
        the resolved recipe; where it is resumed with more epochs, the one with these.
    ``environment.json``
        versions, machine and git state when the run began.
    ``events.jsonl``
        what happened, a line each, only ever appended to. After a line ``resumed`` the run goes on from the step it
        names, and what was logged beyond that step before is void.
    ``checkpoints/step-00000120-1f0c….pt``
        the state after a step, named by its SHA-256. It is written beside its place and moved there when it is whole,
        and read without running code from it.

    Args:
        path: the folder; made if need be.
        recipe: the resolved recipe, of plain values.
        environment: versions and the like.
        existing: ``"refuse"`` a folder that holds results, ``"resume"`` them, or ``"overwrite"`` them.
        loggers: names of those to which losses and scores go, too.
        members: names of the networks, by which the loggers know their metrics.
        fixed_length: the reason why a run that is resumed cannot have more epochs, where it cannot.

    Raises:
        ConfigError: a logger cannot be opened.
        FolderError: another process holds it; it holds results, or none to be resumed; or its recipe is another one
            than this with as many or fewer epochs.
        OSError: it cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        recipe: Mapping[str, Any],
        environment: Mapping[str, Any],
        existing: Existing = "refuse",
        *,
        loggers: Sequence[str] = (),
        members: Sequence[str] = (),
        fixed_length: str | None = None,
    ) -> None:
        self.path, self._members = path, members
        check_links(path)
        check_existing(path, existing)
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            opened.callback(hold(path).release)
            self._begin(recipe, environment, existing, fixed_length)
            opened.callback(os.close, self._events)
            self._loggers = [Logger(name, path, recipe) for name in loggers]
            for logger in self._loggers:
                opened.callback(logger.close)
            self._opened = opened.pop_all()

    def _begin(
        self,
        recipe: Mapping[str, Any],
        environment: Mapping[str, Any],
        existing: Existing,
        fixed_length: str | None,
    ) -> None:
        if existing == "overwrite":
            clear(self.path)
        keep_recipe(self.path, recipe, environment, fixed_length=fixed_length)
        for leftover in (self.path / "checkpoints").glob(".step-*"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        self._digest = hashlib.sha256(json.dumps(without_epochs(recipe), sort_keys=True).encode()).hexdigest()
        events = self.path / "events.jsonl"
        torn = events.exists() and events.stat().st_size and not events.read_bytes().endswith(b"\n")
        self._events = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        if torn:  # the line that was being written when the machine died
            os.write(self._events, b"\n")

    def discard(self) -> None:
        """Take away what a run has written that has trained nothing."""
        for name in ("recipe.yaml", "environment.json", "events.jsonl", "remedies.json", "sources.json", ".lock"):
            (self.path / name).unlink(missing_ok=True)
        for first in [path for path in checkpoints(self.path) if step_of(path) == 0]:
            first.unlink(missing_ok=True)
        for folder in (self.path / "checkpoints", self.path / "stacks", self.path):
            with suppress(OSError):  # something else is in it
                folder.rmdir()

    def note(self, event: str, **values: Any) -> None:
        """Append one event, NaN and infinities as null; lists of numbers, one per member, go to the loggers, too."""
        line = (json.dumps({"event": event, **finite(values)}) + "\n").encode()
        while line:
            line = line[os.write(self._events, line) :]
        for logger in self._loggers:
            metrics = {
                f"{name}/{member}": float(number)
                for name, numbers in values.items()
                if isinstance(numbers, list) and not any(isinstance(number, dict) for number in numbers)
                for member, number in zip(self._members, numbers, strict=True)
            }
            if metrics:
                logger.log(metrics, values["step"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of a state with ``steps``; the events before it are on the disk before it is.

        Raises:
            FolderError: the state holds objects that could not be read back without running code.
            OSError: no space, for example; the checkpoints before it stay.
        """
        import torch

        buffer = io.BytesIO()
        torch.save({**state, "recipe": self._digest}, buffer)
        payload = buffer.getvalue()
        try:
            torch.load(io.BytesIO(payload), weights_only=True)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise FolderError(
                f"the state is not written, since reading it back would run code ({reason})", code="state-unsafe"
            ) from None
        os.fsync(self._events)
        name = f"step-{state['steps']:08d}-{hashlib.sha256(payload).hexdigest()[:16]}.pt"
        path = self.path / "checkpoints" / name
        write_whole({path: payload})
        for old in checkpoints(self.path)[_KEPT:]:
            if old != path:
                old.unlink(missing_ok=True)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        write_whole({self.path / name: json.dumps(finite(content), indent=1) + "\n"})

    def newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The state of the newest checkpoint that is whole, and the names of damaged ones that are newer.

        Raises:
            FolderError: it was written for another recipe, or not by a run.
        """
        damaged: list[str] = []
        for path in checkpoints(self.path):
            payload = path.read_bytes()
            if hashlib.sha256(payload).hexdigest()[:16] == path.stem.rpartition("-")[2]:
                return self._read(path, payload), damaged
            path.rename(path.with_suffix(".damaged"))
            damaged.append(path.name)
            self.note("damaged", checkpoint=path.name)
        return None, damaged

    def _read(self, path: Path, payload: bytes) -> dict[str, Any]:
        """The state in a checkpoint; what only the training knows of it is looked at by `Training.load`."""
        import torch

        try:
            with warnings.catch_warnings():  # torch tells of what it then refuses
                warnings.simplefilter("ignore")
                state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise FolderError(
                f"{path} cannot be read without running code from it ({reason})", code="state-unsafe"
            ) from None
        if not isinstance(state, dict) or "steps" not in state:
            raise FolderError(f"{path} is not the checkpoint of a run; remove it", code="state-damaged")
        if state.pop("recipe", None) != self._digest:
            raise FolderError(f"{path} is the checkpoint of another recipe", code="other-recipe")
        return state

    def close(self) -> None:
        """Let another process have it."""
        self._opened.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def open_writer(
    fabric: "Fabric",
    path: Path,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    existing: Existing,
    **options: Any,
) -> Iterator[Writer]:
    """Open the writer of this process: a `RunFolder` in the first, and one that writes nothing in the others.

    ``options`` are further arguments of `RunFolder`.

    Raises:
        ConfigError, FolderError: the loggers or the folder cannot be used; in every process, or the others would wait.
    """
    folder, refusal = None, None
    if fabric.is_global_zero:
        try:
            folder = RunFolder(path, config, environment, existing, **options)
        except (ConfigError, FolderError) as error:
            refusal = type(error), str(error), error.code
        except OSError as error:
            refusal = FolderError, f"{path} cannot be written to: {error.strerror}", "out-not-writable"
    if refusal := fabric.broadcast(refusal):
        kind, message, code = refusal
        raise kind(message, code=code)
    with folder or nullcontext(Writer()) as writer:
        yield writer


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log that count: torn lines are left out, and so is what a resumed run did again."""
    events: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(event, dict) or not isinstance(event.get("step", 0), int):
            continue
        if event.get("event") == "resumed":
            events = [e for e in events if e.get("step", 0) <= event.get("step", 0)]
        events.append(event)
    return events
