"""What a training step of a stack costs per member, beside single training and the published loop.

Claim: sixteen networks of 30×100 with LBE train as one stack in a quarter of the time per network and step that the
published loop takes, and faster than one of them alone without LBE. Sides take turns within one process; times are
medians. A side is a whole step on inputs that lie ready: forward, LBE, backward, Adam. The matrix rate is that of this
machine in the same minute, so that rates can be compared between machines.

    python benchmarks/stack.py [--rounds 60] [--out results/stack.json]
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from records import keep
from trainability.data import Dataset, Split
from trainability.models import fnn
from trainability.training.engine import Training
from trainability.training.plan import Member, Plan, Strength
from trainability.training.record import Record
from trainability.training.runtime import tune_allocator


def network(depth: int, width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = fnn(784, depth, width, 10)
    tr.apply_(model, tr.Init("he"))
    return model


def noise(batch: int) -> Dataset:
    images = torch.randint(256, (batch * 4, 1, 28, 28), dtype=torch.uint8)
    part = Split(images, torch.randint(10, (batch * 4,)))
    return Dataset("noise", 10, part, part, part, torch.tensor([0.5]), torch.tensor([0.29]), "made here", 0)


def stacked(depth: int, width: int, batch: int, members: int, lbe: bool) -> Callable[[], Tensor]:
    who = [Member(seed, 1e-5, lbe=Strength() if lbe else None) for seed in range(members)]
    models = [network(depth, width, seed) for seed in range(members)]
    records = [Record("", depth, 1e-5, seed) for seed in range(members)]
    training = Training(models, who, records, noise(batch), Plan(10**6, batch))
    training.prepare()
    training.stack.module.train()
    fixed = training.batches(0)
    training.batches.take = lambda _index: fixed  # so that a step is timed and not the reading of data
    return training.step


def alone(depth: int, width: int, batch: int, side: str) -> Callable[[], None]:
    """A loop by hand over one network: plain, or with the published formula layer by layer."""
    model, x, y = network(depth, width, 0), torch.randn(batch, 784), torch.randint(10, (batch,))
    taken: list[Tensor] = []
    alphas: list[nn.Parameter] = []
    if side == "published":
        for relu in [m for m in model.modules() if isinstance(m, nn.ReLU)]:
            relu.register_forward_hook(lambda _m, _i, output: taken.append(published_entropy(output)))
            alphas.append(nn.Parameter(torch.tensor(0.5)))
    optimizer = torch.optim.Adam([*model.parameters(), *alphas], lr=1e-5)
    floor = torch.tensor(0.2)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if side == "published":
            terms = [0.2 * (h - torch.maximum(floor, a.abs())) ** 2 for h, a in zip(taken, alphas, strict=True)]
            taken.clear()
            loss = loss + loss * torch.stack(terms).mean()
        loss.backward()
        optimizer.step()

    return step


def published_entropy(a: Tensor) -> Tensor:
    std = torch.std(a.flatten(1), dim=0)
    return (0.5 * torch.log(math.pi * math.e * std**2 + 1)).mean()


def matrix_rate(size: int = 2048, repeats: int = 12) -> float:
    """Floating-point operations per second of a large matrix product, the best of a few."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def operations(depth: int, width: int, batch: int) -> float:
    """Of the matrix products of one step of one network; the first layer has no gradient for its input."""
    hidden = 6 * batch * width * (width * (depth - 1) + 10)
    return hidden + 4 * batch * width * 784


def measure(sides: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Milliseconds per member and step of each side."""
    for step, _ in sides.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            step, members = sides[name]
            begin = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - begin) / members)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    allocator = tune_allocator()
    rows: list[dict[str, object]] = []
    for depth, width, batch, members in ((30, 100, 128, 16), (50, 128, 512, 4)):
        sides = {
            "published, one": (alone(depth, width, batch, "published"), 1),
            "plain, one": (alone(depth, width, batch, "plain"), 1),
            "plain, stack": (stacked(depth, width, batch, members, lbe=False), members),
            "lbe, stack": (stacked(depth, width, batch, members, lbe=True), members),
            "lbe, stack of one": (stacked(depth, width, batch, 1, lbe=True), 1),
        }
        before = matrix_rate()
        ms = measure(sides, args.rounds)
        rate = (before + matrix_rate()) / 2
        for name, value in ms.items():
            flops = operations(depth, width, batch) / (value / 1e3)
            row = {"network": f"fnn{depth}x{width}", "batch": batch, "members": sides[name][1], "side": name}
            row |= {
                "ms_per_member_step": round(value, 2),
                "gflops": round(flops / 1e9),
                "share_of_matrix_rate": round(flops / rate, 2),
            }
            row |= {
                "of_published": round(value / ms["published, one"], 3),
                "of_plain_one": round(value / ms["plain, one"], 3),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        print(json.dumps({"matrix_gflops": round(rate / 1e9)}), flush=True)
        rows.append({"network": f"fnn{depth}x{width}", "matrix_gflops": round(rate / 1e9)})
    keep(args.out, "python benchmarks/stack.py", allocator=allocator, rows=rows)


if __name__ == "__main__":
    main()
