"""Speaking to the person: one sentence for what is refused, a console that outlives its reader, printing JSON."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console

_LONGEST = 600  # of a message; what it quotes may have any length


class Terminal(Console):
    """Standard error as a console; when nobody reads it any more it falls silent, and the work goes on."""

    def __init__(self) -> None:
        super().__init__(stderr=True, quiet=not is_first(), highlight=False)

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def is_first() -> bool:
    """Tell whether this process is the first of those that share a run, and so the one that speaks."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def fail(sentence: str) -> NoReturn:
    """Say one sentence on standard error and end with exit code 2."""
    if is_first():
        print(f"trainability: {printable(sentence)}", file=sys.stderr)
    raise click.exceptions.Exit(2)


def printable(text: str) -> str:
    """The text in one line of bounded length, with what would act on a terminal written out.

    >>> printable("a\\x1b[31mred")
    'a\\\\x1b[31mred'
    """
    lines = " ".join(text[: 2 * _LONGEST].splitlines())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in lines)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    return "…" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def print_json(content: Any) -> None:
    """Print one object to standard output, after everything is on the disk; a reader that is gone costs nothing."""
    try:
        print(json.dumps(content), flush=True)
    except OSError as error:  # a pipe without a reader, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            fail(f"the results could not be printed: {error.strerror}; they are in the folder")


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM a KeyboardInterrupt, for work that then has to give something back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
