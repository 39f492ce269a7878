"""What LBE on every layer costs per training step, beside the plain step and the published implementation.

Claim: with LBE a step takes at most 1.2 times the plain step on small layers and convolutions and 1.02 times on wide
layers. Four sides take turns within one process: the plain step, the plain step once more (it reads 1.00 where the
measurement is sound), the published implementation as its formula states it, and `trainability.LBE`. All start from
He initialisation, because PyTorch's default leaves denormal numbers in Adam's moments that slow the plain side, and
all run under the same allocator thresholds. Ratios are medians of the ratios within a round. Peak memory is that of
the tensors of one warm step, counted from the allocations that torch's profiler records.

    python benchmarks/overhead.py [--case fnn30x100 ...] [--rounds 200] [--mode eager compiled] [--out FILE.json]
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import trainability as tr
from records import keep
from trainability.training.runtime import tune_allocator

CASES: dict[str, tuple[int, int]] = {"fnn30x100": (128, 600), "fnn50x1000": (512, 20), "conv20x16": (128, 60)}


def build(case: str) -> tuple[nn.Sequential, Tensor]:
    batch = CASES[case][0]
    torch.manual_seed(0)
    if case.startswith("fnn"):
        depth, width = map(int, case[3:].split("x"))
        sizes = [784] + [width] * depth
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
        model, x = nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(batch, 784)
    else:
        channels = [3] + [16] * 20
        layers = [m for i, o in pairwise(channels) for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        x = torch.randn(batch, 3, 32, 32)
    tr.apply_(model, tr.Init("he"))
    return model, x


class Published(nn.Module):
    """The published formula, layer by layer: 0.5 log(πe std² + 1), one parameter tensor per layer."""

    def __init__(self, model: nn.Module, alpha: float = 0.5, beta: float = 0.2, alpha_min: float = 0.2) -> None:
        super().__init__()
        self.taken: list[Tensor] = []
        relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
        for relu in relus:
            relu.register_forward_hook(lambda _m, _i, output: self.taken.append(self.entropy(output)))
        self.alphas = nn.ParameterList(nn.Parameter(torch.tensor(alpha)) for _ in relus)
        self.beta, self.alpha_min = beta, torch.tensor(alpha_min)

    @staticmethod
    def entropy(a: Tensor) -> Tensor:
        std = torch.std(a.flatten(1), dim=0)
        return (0.5 * torch.log(math.pi * math.e * std**2 + 1)).mean()

    def forward(self, loss: Tensor) -> Tensor:
        terms = [
            self.beta * (h - torch.maximum(self.alpha_min, a.abs())) ** 2
            for h, a in zip(self.taken, self.alphas, strict=True)
        ]
        self.taken.clear()
        return loss + loss * torch.stack(terms).mean()


def step_of(side: str, case: str, compiled: bool) -> Callable[[], None]:
    model, x = build(case)
    y = torch.randint(10, (len(x),))
    term = Published(model) if side == "published" else tr.LBE(model) if side == "lbe" else None
    parameters = [*model.parameters(), *(term.parameters() if term else [])]
    optimizer = torch.optim.Adam(parameters, lr=1e-5)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        (term(loss) if term is not None else loss).backward()
        optimizer.step()

    return step


def peak_bytes(step: Callable[[], None]) -> int:
    """Largest sum of tensor memory held at once above that held before the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def measure(case: str, mode: str, rounds: int) -> dict[str, object]:
    names = ["plain", "plain again", "published", "lbe"]
    # Model, gradients and moments are held between steps; the plain side's count is the base of the memory ratio.
    steps = {name: step_of(name.split()[0], case, mode == "compiled") for name in names}
    for step in steps.values():
        for _ in range(4):
            step()
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        # Shuffled, so that no side always follows one that left the caches as it likes them.
        for name in order.sample(names, len(names)):
            begin = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - begin)
    held = held_bytes(case)
    peaks = {name: held + peak_bytes(steps[name]) for name in names}
    return {
        "case": case,
        "mode": mode,
        "batch": CASES[case][0],
        "rounds": rounds,
        "plain_ms": round(1e3 * statistics.median(times["plain"]), 2),
        "ratio": {
            n: round(statistics.median(b / a for a, b in zip(times["plain"], times[n], strict=True)), 3)
            for n in names[1:]
        },
        "memory": {n: round(peaks[n] / peaks["plain"], 3) for n in names[1:]},
    }


def held_bytes(case: str) -> int:
    """What every side holds when a step has freed the old gradients: parameters and Adam's two moments."""
    model, _ = build(case)
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--mode", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    allocator = tune_allocator()
    # The sides differ in hooks alone, and without this the code compiled for one is taken for another.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    rows = []
    for mode in args.mode:
        for case in args.case:
            rows.append(row := measure(case, mode, args.rounds or CASES[case][1]))
            print(json.dumps(row), flush=True)
    keep(args.out, "python benchmarks/overhead.py", allocator=allocator, rows=rows)


if __name__ == "__main__":
    main()
