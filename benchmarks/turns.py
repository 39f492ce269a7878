"""How the sides of a benchmark take turns, so that what changes on the machine meanwhile touches all of them."""

import argparse
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

from parts import Row, reason
from trainability.stack.cuda_graphs import synchronize
from trainability.training.trainer import Training

_WARM = 6  # a step is launched operation by operation at first, then recorded, or compiled
_LONG_S = 0.05  # a step that takes as long is a turn by itself
_LEAST = 3


class Side(NamedTuple):
    """What runs one step, of how many networks, and the training behind it where it is one of this package."""

    step: Callable[[], object]
    members: int = 1
    training: Training | None = None


def warm(makers: Mapping[str, Callable[[], Side]], device: str) -> tuple[dict[str, Side], dict[str, str]]:
    """Make the sides and run them until they are compiled and recorded; those that work, and why the others do not."""
    sides: dict[str, Side] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            sides[name] = _warmed(make(), torch.device(device))
        except Exception as error:
            failed[name] = reason(error)
        gc.collect()  # what has failed gives its memory back
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    return sides, failed


def _warmed(side: Side, device: torch.device) -> Side:
    for _ in range(_WARM):
        side.step()
    synchronize(device)
    return side


def take_turns(
    sides: Mapping[str, Side], rounds: int, device: str, *, steps: int = 1, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Seconds per member and step of each side in every round: shuffled turns of so many steps each.

    Shuffled, so that no side always follows one that left the caches as it likes them. The device is waited for around
    each turn.
    """
    where = torch.device(device)

    def seconds_of(side: Side, steps: int) -> float:
        synchronize(where)
        begin = time.perf_counter()
        for _ in range(steps):
            side.step()
        synchronize(where)
        return (time.perf_counter() - begin) / steps

    turns = {name: 1 if seconds_of(side, 1) > _LONG_S else steps for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, begin = random.Random(0), time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST and time.perf_counter() - begin > seconds:
            break
        for name in order.sample(list(sides), len(sides)):
            times[name].append(seconds_of(sides[name], turns[name]) / sides[name].members)
    return times


def compare(
    makers: Mapping[str, Callable[[], Side]],
    about: Row,
    operations: float,
    of: Sequence[str],
    args: argparse.Namespace,
    *,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Row]:
    """A row for every side, with its time as a ratio to that of some; ``operations`` is of one network's step."""
    device = args.device
    sides, failed = warm(makers, device)
    for name, why in failed.items():
        yield {**about, "side": name, "failed": why}
    before = matrix_rate(device, dtype)
    times = take_turns(sides, args.rounds, device, steps=args.steps, seconds=args.seconds)
    rate = (before + matrix_rate(device, dtype)) / 2
    each = {name: median(found) for name, found in times.items()}
    for name, value in each.items():
        row = {**about, "side": name, "members": sides[name].members, "rounds": len(times[name])}
        row |= {"ms_per_member_step": float(f"{1e3 * value:.4g}"), "member_steps_per_second": round(1 / value, 1)}
        row |= {"gflops": round(operations / value / 1e9), "share_of_matrix_rate": round(operations / value / rate, 3)}
        row |= {f"of {other}": round(value / each[other], 3) for other in of if other in each}
        if training := sides[name].training:
            row["execution"] = {k: v for k, v in training.execution.items() if k in ("members", "not_recorded")}
        yield row
    yield {**about, "matrix_gflops": round(rate / 1e9)}


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a large matrix product, the best of half a second."""
    where = torch.device(device)
    size = 2048 if where.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds: list[float] = []
    while sum(seconds) < 0.5 or len(seconds) < _LEAST:
        synchronize(where)
        begin = time.perf_counter()
        a @ b
        synchronize(where)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)
