"""What a fuzzer's input is, how one is tried, and what counts as a failure."""

import io
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import trainability
from trainability.errors import TrainabilityError

PACKAGE = str(Path(trainability.__file__).parent)
OURS = str(Path(__file__).parent)
SECONDS = 10.0  # of the processor, for one input
SORTS = ("foreign", "half-written", "trace")  # of failures, which are counted in any case
BYTES = 4 * 2**30  # beside what the process holds already


@dataclass(frozen=True)
class Case:
    """One input: what it is, as a line of Python, and how to try it.

    ``run`` is given a function to call as soon as the input is past what checks its form; it raises what the package
    raises, and `Fault` for what the package did wrong without an error.
    """

    text: str
    run: Callable[[Callable[[], None]], None]


Kind = Callable[[random.Random], Case]
"""Makes an input of one kind; the same random state gives the same input."""


class Fault(Exception):
    """Something wrong that raised nothing: a trace in a model, a half-written file, a printed line.

    ``what`` says it without anything that differs from input to input, so that equal faults are counted as one.
    """

    def __init__(self, sort: str, what: str) -> None:
        super().__init__(f"{sort}: {what}")
        self.sort, self.what = sort, what


class Users(Exception):
    """An error of the user's own code, which came through as it was: neither accepted nor refused, and right."""


class Slow(BaseException):
    """Raised in an input that takes too long; no Exception, which the package may catch and explain."""


@dataclass(frozen=True)
class Failure:
    """A distinct failure, with the first input that showed it."""

    sort: str  # "foreign", "slow", or that of a Fault
    error: str  # the exception's type, or what a Fault says
    place: str  # "file.py:function" of the innermost line of the package
    line: int
    message: str
    text: str
    again: str


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    made: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    users: int = 0
    failures: dict[tuple[str, str, str], Failure] = field(default_factory=dict)
    times: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, sort: str) -> int:
        """How many inputs failed in that way."""
        return sum(times for key, times in self.times.items() if key[0] == sort)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "made": self.made,
            "accepted": self.accepted,
            "refused": dict(self.refused.most_common()),
            "errors of the user's own code": self.users,
            "failed": {sort: self.count(sort) for sort in sorted({*SORTS, *(key[0] for key in self.times)})},
            "seconds": round(self.seconds, 1),
            "failures": [{**vars(self.failures[key]), "times": times} for key, times in self.times.most_common()],
        }


def fuzz(kinds: dict[str, Kind], seed: int, count: int, seconds: float) -> dict[str, Tally]:
    """Try ``count`` inputs in all, shared evenly by the kinds, or as many as the seconds allow."""
    tallies = {name: Tally() for name in kinds}
    end = time.monotonic() + seconds
    with bounded():
        for number in range(-(-count // len(kinds))):
            for name, kind in kinds.items():
                if time.monotonic() > end:
                    return tallies
                attempt(tallies[name], name, kind, seed, number)
    return tallies


def attempt(tally: Tally, name: str, kind: Kind, seed: int, number: int) -> None:
    """Make input ``number`` of a kind and seed, try it, and count what became of it."""
    began = time.monotonic()
    case = kind(random.Random(f"{name} {seed} {number}"))
    tally.made += 1
    accepted: list[None] = []
    said = io.StringIO()
    try:
        with quiet(said), within(SECONDS):
            start(0)
            case.run(lambda: accepted.append(None))
        if said.getvalue().strip():
            raise Fault("printed", said.getvalue().strip().splitlines()[0][:80])
    except TrainabilityError as error:
        tally.refused[error.code] += 1
    except Users:
        tally.users += 1
    except (Fault, Exception, Slow, SystemExit) as error:
        found = _failure(error, case, f"--kinds {name} --seed {seed} --only {number}")
        key = (found.sort, found.error, found.place)
        tally.failures.setdefault(key, found)
        tally.times[key] += 1
    tally.accepted += bool(accepted)
    tally.seconds += time.monotonic() - began


def start(seed: int) -> None:
    """Set every random state, so that an input does the same wherever it comes in the row."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _failure(error: BaseException, case: Case, again: str) -> Failure:
    place, line = where(error)
    message = str(error).strip().partition("\n")[0][:200]
    text = "; ".join([case.text, *getattr(error, "__notes__", [])])
    if isinstance(error, Fault):
        return Failure(error.sort, error.what, "", 0, message, text, again)
    sort = "slow" if isinstance(error, Slow) else "foreign"
    return Failure(sort, type(error).__name__, place, line, message, text, again)


def where(error: BaseException) -> tuple[str, int]:
    """The innermost line of the package that an error came through, as file and function, and the line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    if not frames:
        return "outside the package", 0
    return f"{frames[-1].filename[len(PACKAGE) + 1 :]}:{frames[-1].name}", frames[-1].lineno or 0


def is_the_users(error: BaseException) -> bool:
    """Whether code of the user raised an error: a model's forward, a loss, a function, or what calls the package.

    That is to come through as it is. Such code is what is written in the fuzzer, and what a module of torch runs.
    """
    users = where(error)[1] == 0
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(PACKAGE) and not frame.name.startswith("__torch_"):  # those only look on
            users = False
        elif frame.filename.startswith((OURS, "<fuzz>")) or frame.name == "_call_impl":
            users = True
    return users


@contextmanager
def quiet(said: io.StringIO) -> Iterator[None]:
    """Keep what is printed, and let no warning through."""
    with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `Slow` after so many seconds of the processor, or ten times as many on the clock."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Slow

    alarms = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = {number: signal.signal(number, stop) for number, _, _ in alarms}
    for _, timer, limit in alarms:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, timer, _ in alarms:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextmanager
def bounded() -> Iterator[None]:
    """Refuse memory beyond a few gigabytes, so that an input that asks for all of it is an error."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
