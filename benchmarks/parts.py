"""Parts of a benchmark, each measured in a process of its own: one that fails or hangs takes no other along.

A device that has met an error is of no use to its process any more; a part does not find memory that another has left
in pieces; and torch compiles code for eight uses of it in a process, and no more.
"""

import argparse
import math
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from records import Rows
from trainability.training.runtime import tune_allocator

Row = dict[str, object]
Measure = Callable[[argparse.Namespace], Iterable[Row]]


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark in parts takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--rounds", type=int, help="turns of every side")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no turns begin, but for three")
    parser.add_argument("--steps", type=int, default=1, help="steps in a turn; one, where a step takes long")
    parser.add_argument("--limit", type=float, help="seconds after which a part is given up")
    parser.add_argument("--out", type=Path, help="the file for the rows")
    return parser


def measure_parts(args: argparse.Namespace, parts: Sequence[Mapping[str, object]], measure: Measure) -> int:
    """Measure the parts, each some of the arguments narrowed down; return 1 if something could not be measured."""
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {args.device}: torch sees no CUDA device here")
    rows = Rows(args.out, args.device, allocator=tune_allocator())
    for part in parts:
        for row in _in_a_process(measure, argparse.Namespace(**{**vars(args), **part})):
            rows.add({**part, **row} if "failed" in row else row)
    return int(any("failed" in row for row in rows.rows))


def reason(error: Exception) -> str:
    """Why something failed, in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def _in_a_process(measure: Measure, args: argparse.Namespace) -> Iterator[Row]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(measure, args, sender))
    process.start()
    sender.close()
    begin = time.monotonic()
    try:
        while receiver.poll(None if args.limit is None else max(0.0, begin + args.limit - time.monotonic())):
            yield receiver.recv()
        process.kill()
        process.join()
        yield {"failed": f"given up after {args.limit:g} s"}
    except EOFError:
        process.join()
        if process.exitcode:
            yield {"failed": f"the process ended with {process.exitcode}"}


def _report(measure: Measure, args: argparse.Namespace, sender: Connection) -> None:
    tune_allocator()
    try:
        for row in measure(args):
            sender.send(row)
    except Exception as error:
        traceback.print_exc()
        sender.send({"failed": reason(error)})
