"""A loss surface by this package, and by a loop over its points, in turns.

Claim: a call is no slower than a loop by hand, and gains where the calls of torch, not the arithmetic, take the time.

The loop is what one writes by hand: a copy of the model, weights w + a d₁ + b d₂ put in place, a pass without gradients
over samples that lie ready. The other side is the whole call of `trainability.landscape`, with all that it does
before the first point. Both take turns in one process on one thread; a ratio is that of two successive turns, above 1
where the package is faster.

    python benchmarks/landscape.py [--networks 15x500 30x100 cnn] [--batch-size 256] [--rounds 7] [--out FILE]
"""

import argparse
import copy
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from records import Rows
from trainability.surface.directions import random_directions
from trainability.training.runtime import tune_allocator


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if found := re.fullmatch(r"(\d+)x(\d+)", name):
        depth, width = map(int, found.groups())
        layers, inputs = [nn.Flatten()], 784
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, 10))
    if name != "cnn":
        raise argparse.ArgumentTypeError(f"{name}: take depth and width, such as 30x100, or cnn")
    blocks = [
        m
        for inputs, outputs in ((1, 8), (8, 16))
        for m in (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(784, 10))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, size: int, batch_size: int) -> Tensor:
    first, second = random_directions(model, "filter", 0)
    twin, losses = copy.deepcopy(model).eval(), torch.zeros(size, size, dtype=torch.float64)
    axis = torch.linspace(-1, 1, size, dtype=torch.float64).tolist()
    with torch.no_grad():
        for i, a in enumerate(axis):
            for j, b in enumerate(axis):
                for (name, p), w in zip(twin.named_parameters(), model.parameters(), strict=True):
                    p.copy_(torch.add(w, first[name], alpha=a).add_(second[name], alpha=b))
                for inputs, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
                    losses[i, j] += F.cross_entropy(twin(inputs), targets).item() * len(targets) / len(y)
    return losses


def measured(name: str, args: argparse.Namespace) -> dict[str, object]:
    model = network(name)
    x, y = torch.randn(args.samples, 1, 28, 28), torch.randint(0, 10, (args.samples,))
    sides: dict[str, Callable[[], Tensor]] = {
        "by hand": lambda: by_hand(model, x, y, args.size, args.batch_size),
        "landscape": lambda: landscape().values["loss"],
    }

    def landscape() -> "tr.surface.result.Landscape":
        return tr.landscape(model, (x, y), F.cross_entropy, size=args.size, batch_size=args.batch_size)

    torch.testing.assert_close(sides["landscape"](), sides["by hand"](), rtol=1e-3, atol=1e-4)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(args.rounds):
        for side in sorted(sides, reverse=bool(turn % 2)):
            begin = time.perf_counter()
            sides[side]()
            times[side].append(time.perf_counter() - begin)
    ratios = sorted(a / b for a, b in zip(times["by hand"], times["landscape"], strict=True))
    return {
        "network": name,
        "batch": args.batch_size,
        "samples": args.samples,
        "points": args.size**2,
        "execution": landscape().execution,
        **{f"{side}, ms per point": round(1e3 * median(t) / args.size**2, 3) for side, t in times.items()},
        "times as fast": round(median(ratios), 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["15x500", "30x100", "cnn"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--size", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    rows = Rows(args.out, "cpu")
    for name in args.networks:
        rows.add(measured(name, args))


if __name__ == "__main__":
    main()
