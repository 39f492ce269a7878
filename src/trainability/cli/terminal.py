"""Speaking to the person: one sentence for what is refused, printing JSON."""

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
    """Standard error as a console, of the first process only."""

    def __init__(self) -> None:
        super().__init__(stderr=True, quiet=not is_first(), highlight=False)


def is_first() -> bool:
    """True where this process is the first of those that share a run, and so the one that speaks."""
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
    """Print one object to standard output, after everything is on the disk."""
    print(json.dumps(content), flush=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make the first Ctrl-C or SIGTERM a KeyboardInterrupt, for work that then has to give something back.

    Those that follow change nothing, so that it can; SIGQUIT still ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
