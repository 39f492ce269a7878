"""What LBE on every layer costs per training step, beside the plain step and the published implementation.

Claim: with LBE a step takes at most 1.2 times the plain step on small layers and convolutions and 1.02 times on wide
layers. Four sides take turns within one process: the plain step, the plain step once more (it reads 1.00 where the
measurement is sound), the published implementation as its formula states it, and `trainability.LBE`. All start from
He initialization, because PyTorch's default leaves denormal numbers in Adam's moments that slow the plain side, and
all run under the same allocator thresholds. Ratios are medians of the ratios within a round. Peak memory is that of
the tensors of one warm step, counted from the allocations that torch's profiler records.

    python benchmarks/overhead.py [--case fnn30x100 ...] [--rounds 200] [--mode eager compiled] [--out FILE.json]

A case is ``fnn`` or ``conv``, depth and width; its steps are on batches of 128, or 512 from a width of 500.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import trainability as tr
from parts import Row, measure_parts, options
from turns import Side, take_turns, warm

ROUNDS = {"fnn30x100": 200, "fnn50x1000": 20, "conv20x16": 60}


class Case(NamedTuple):
    kind: str
    depth: int
    width: int

    @classmethod
    def of(cls, name: str) -> "Case":
        found = re.fullmatch(r"(fnn|conv)(\d+)x(\d+)", name)
        if found is None:
            raise argparse.ArgumentTypeError(f"{name}: take fnn or conv, depth and width, such as fnn30x100")
        return cls(found[1], int(found[2]), int(found[3]))

    @property
    def batch(self) -> int:
        return 512 if self.width >= 500 else 128

    def __str__(self) -> str:
        return f"{self.kind}{self.depth}x{self.width}"


def build(case: Case, device: str) -> tuple[nn.Sequential, Tensor]:
    kind, depth, width = case
    torch.manual_seed(0)
    if kind == "fnn":
        sizes = [784] + [width] * depth
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
        model, x = nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(case.batch, 784)
    else:
        channels = [3] + [width] * depth
        layers = [m for i, o in pairwise(channels) for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        x = torch.randn(case.batch, 3, 32, 32)
    tr.apply_(model, tr.Init("he"))
    return model.to(device), x.to(device)


class Published(nn.Module):
    """The published formula, layer by layer: 0.5 log(πe std² + 1), one parameter tensor per layer."""

    alpha_min: Tensor

    def __init__(self, model: nn.Module, alpha: float = 0.5, beta: float = 0.2, alpha_min: float = 0.2) -> None:
        super().__init__()
        self.taken: list[Tensor] = []
        relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
        for relu in relus:
            relu.register_forward_hook(lambda _m, _i, output: self.taken.append(self.entropy(output)))
        self.alphas = nn.ParameterList(nn.Parameter(torch.tensor(alpha)) for _ in relus)
        self.beta = beta
        self.register_buffer("alpha_min", torch.tensor(alpha_min))

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


def side(name: str, case: Case, device: str, compiled: bool) -> Side:
    model, x = build(case, device)
    y = torch.randint(10, (len(x),), device=device)
    term = Published(model).to(device) if name == "published" else tr.LBE(model) if name == "lbe" else None
    parameters = [*model.parameters(), *(term.parameters() if term else [])]
    optimizer = torch.optim.Adam(parameters, lr=1e-5)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        (term(loss) if term is not None else loss).backward()
        optimizer.step()

    return Side(step)


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Largest sum of tensor memory held at once above that held before the step."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def measured(args: argparse.Namespace) -> Iterator[Row]:
    case, device = args.case, args.device
    if args.mode == "compiled":  # the sides differ in hooks alone: the code compiled for one would be taken for another
        torch._dynamo.config.skip_nnmodule_hook_guards = False
    names = ["plain", "plain again", "published", "lbe"]
    makers = {name: partial(side, name, case, device, args.mode == "compiled") for name in names}
    sides, failed = warm(makers, device)
    about: Row = {"case": str(case), "mode": args.mode}
    for name, why in failed.items():
        yield {**about, "side": name, "failed": why}
    if "plain" not in sides:
        return
    rounds = args.rounds or ROUNDS.get(str(case), 20)
    times = take_turns(sides, rounds, device, steps=args.steps, seconds=args.seconds)
    # Model, gradients and moments are held between steps; the plain side's count is the base of the memory ratio.
    held = held_bytes(case)
    peaks = {name: held + peak_bytes(one.step, device) for name, one in sides.items()}
    plain, others = times["plain"], [name for name in sides if name != "plain"]
    yield {
        **about,
        "batch": case.batch,
        "rounds": len(plain),
        "plain_ms": round(1e3 * median(plain), 3),
        "ratio": {n: round(median(b / a for a, b in zip(plain, times[n], strict=True)), 3) for n in others},
        "memory": {n: round(peaks[n] / peaks["plain"], 3) for n in others},
    }


def held_bytes(case: Case) -> int:
    """What every side holds when a step has freed the old gradients: parameters and Adam's two moments."""
    model, _ = build(case, "cpu")
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--case", type=Case.of, nargs="+", default=[Case.of(name) for name in ROUNDS])
    parser.add_argument("--mode", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    args = parser.parse_args()
    return measure_parts(args, [{"mode": mode, "case": case} for mode in args.mode for case in args.case], measured)


if __name__ == "__main__":
    sys.exit(main())
