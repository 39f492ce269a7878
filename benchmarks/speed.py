"""What a step takes with this code and with an earlier one, in turns.

Claim: networks with norms, IC layers or learned shortcuts train in a stack in less time than when they went through
`torch.vmap`; LBE on one narrow network costs less; residual networks take the order in memory that is faster.

Each code runs in a process of its own, of which one works at a time: shuffled turns of a step of every case in both.
Ratios are medians of the ratios within a round: of a case to the plain one of the same code (`to plain`), and of this
code to the earlier one (`to before`).

    python benchmarks/speed.py --before DIRECTORY [--rounds 20] [--cases ...] [--out FILE.json]

DIRECTORY holds the earlier code's `src`.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import trainability as tr
from records import Rows
from sides import alone, network, noise
from trainability.data.dataset import Dataset, Split
from trainability.models import resnet
from trainability.training.config import Member, TrainingConfig
from trainability.training.devices import fabric_on
from trainability.training.history import History
from trainability.training.runtime import tune_allocator
from trainability.training.trainer import Training

REMEDIES = {
    "batchnorm": tr.Normalize("batch"),
    "layernorm": tr.Normalize("layer"),
    "groupnorm": tr.Normalize("group", 8),
    "ic": tr.IC(0.95),
    "rezero": tr.Residual("rezero"),
}
STACK = "stack of 3, 50x128, batch 512, "
PLAIN = {"one 30x100, batch 128, lbe": "one 30x100, batch 128"} | {STACK + name: STACK + "plain" for name in REMEDIES}
CASES = [*dict.fromkeys([*PLAIN.values(), *PLAIN]), "resnet 26, batch 64"]


def step_of(case: str) -> tuple[Callable[[], object], int]:
    """What runs one step, and of how many networks."""
    if case == "one 30x100, batch 128":
        return alone(30, 100, 128, "plain").step, 1
    if case == "one 30x100, batch 128, lbe":
        return _with_lbe(network(30, 100, 0), torch.randn(128, 784)), 1
    if case.startswith(STACK):
        models = [network(50, 128, seed) for seed in range(3)]
        if (name := case.removeprefix(STACK)) != "plain":
            for model in models:
                tr.apply_(model, REMEDIES[name], inputs=torch.randn(4, 1, 28, 28))
        return _training(models, noise(512), 512), 3
    images = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8)
    part = Split(images, torch.randint(10, (256,)))
    data = Dataset("noise", 10, part, part, part, torch.tensor([0.5] * 3), torch.tensor([0.29] * 3), "made here", 0)
    return _training([resnet(26, classes=10)], data, 64), 1


def _with_lbe(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    y, lbe = torch.randint(10, (len(x),)), tr.LBE(model)
    optimizer = torch.optim.Adam([*model.parameters(), *lbe.parameters()], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        lbe(nn.functional.cross_entropy(model(x), y)).backward()
        optimizer.step()

    return step


def _training(models: list[nn.Module], data: Dataset, batch: int) -> Callable[[], object]:
    members = [Member(seed, 1e-5) for seed in range(len(models))]
    records = [History("", 0, 1e-5, m.seed) for m in members]
    plan = TrainingConfig(10**6, batch, compile="off")
    training = Training(models, members, records, data, plan, fabric_on("cpu"))
    training.prepare()
    training.stack.module.train()
    fixed = training.batches(0)
    training.batches.current = lambda: fixed
    return training.step


def serve(cases: list[str]) -> None:
    """Run a step of each case that is asked for, and say what it took."""
    tune_allocator()
    sides = {case: step_of(case) for case in cases}
    for step, _ in sides.values():
        for _ in range(4):
            step()
    print("ready", flush=True)
    for line in sys.stdin:
        step, members = sides[line.strip()]
        begin = time.perf_counter()
        step()
        print((time.perf_counter() - begin) / members, flush=True)


class Code:
    """A process that runs steps with the code of one directory."""

    def __init__(self, source: Path, cases: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source)}
        command = [sys.executable, __file__, "--serve", "--cases", *cases]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._read()

    def seconds(self, case: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("one of the codes does not run these cases")
        return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="directory of the earlier code")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.cases)
    here = Path(__file__).parents[1]
    codes = {"before": Code(args.before / "src", args.cases), "now": Code(here / "src", args.cases)}
    turns = [(code, case) for code in codes for case in args.cases]
    times: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
    order = random.Random(0)
    for _ in range(args.rounds):
        for code, case in order.sample(turns, len(turns)):
            times[code, case].append(codes[code].seconds(case))
    rows = Rows(args.out, "cpu", rounds=args.rounds)
    for case in args.cases:
        for code in codes:
            row: dict[str, object] = {"case": case, "code": code, "ms": round(1e3 * median(times[code, case]), 2)}
            if plain := times.get((code, PLAIN.get(case, ""))):
                row["to plain"] = _ratio(times[code, case], plain)
            if code == "now":
                row["to before"] = _ratio(times[code, case], times["before", case])
            rows.add(row)
    return None


def _ratio(these: list[float], those: list[float]) -> float:
    return round(median(a / b for a, b in zip(these, those, strict=True)), 3)


if __name__ == "__main__":
    main()
