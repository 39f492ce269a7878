"""The sides that the benchmarks of whole training steps compare, and how they take turns."""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from trainability.data import Dataset, Split
from trainability.models import fnn
from trainability.training.devices import fabric_on
from trainability.training.engine import Training
from trainability.training.graphs import CudaGraph, synchronise
from trainability.training.plan import Member, Plan, Strength
from trainability.training.record import Record

Side = tuple[Callable[[], object], int]
"""What runs one step, and of how many networks."""


def network(depth: int, width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = fnn(784, depth, width, 10)
    tr.apply_(model, tr.Init("he"))
    return model


def noise(batch: int) -> Dataset:
    images = torch.randint(256, (batch * 4, 1, 28, 28), dtype=torch.uint8)
    part = Split(images, torch.randint(10, (batch * 4,)))
    return Dataset("noise", 10, part, part, part, torch.tensor([0.5]), torch.tensor([0.29]), "made here", 0)


def stacked(
    depth: int,
    width: int,
    batch: int,
    members: int,
    lbe: bool,
    *,
    device: str = "cpu",
    precision: str = "32-true",
    cuda_graph: bool = True,
) -> Training:
    """A training of which every step sees the same batch, so that a step is timed and not the reading of data."""
    who = [Member(seed, 1e-5, lbe=Strength() if lbe else None) for seed in range(members)]
    models = [network(depth, width, seed) for seed in range(members)]
    records = [Record("", depth, 1e-5, seed) for seed in range(members)]
    plan = Plan(10**6, batch, cuda_graph="auto" if cuda_graph else "off")
    training = Training(models, who, records, noise(batch), plan, fabric_on(device, precision=precision))
    training.prepare()
    training.stack.module.train()
    fixed = training.batches(0)
    training.batches.take = lambda _index: fixed
    return training


def alone(
    depth: int, width: int, batch: int, side: str, *, device: str = "cpu", bf16: bool = False
) -> Callable[[], None]:
    """A loop by hand over one network: plain, or with the published formula layer by layer."""
    model, x = network(depth, width, 0).to(device), torch.randn(batch, 784, device=device)
    y = torch.randint(10, (batch,), device=device)
    taken: list[Tensor] = []
    alphas: list[nn.Parameter] = []
    if side == "published":
        for relu in [m for m in model.modules() if isinstance(m, nn.ReLU)]:
            relu.register_forward_hook(lambda _m, _i, output: taken.append(published_entropy(output.float())))
            alphas.append(nn.Parameter(torch.tensor(0.5, device=device)))
    optimizer = torch.optim.Adam([*model.parameters(), *alphas], lr=1e-5)
    floor = torch.tensor(0.2, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
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


def products(
    depth: int, width: int, batch: int, members: int, *, device: str = "cpu", bf16: bool = False
) -> Callable[[], None]:
    """The matrix products of a step and nothing else, with weights and activations of their own for every layer."""
    options = {"device": device, "dtype": torch.bfloat16 if bf16 else torch.float32}
    sizes = [784, *[width] * depth, 10]
    weights = [torch.randn(members, o, i, **options) for i, o in pairwise(sizes)]
    values = [torch.randn(members, batch, size, **options) for size in sizes]
    outputs = [torch.empty_like(v) for v in values]
    gradients = [torch.empty_like(w) for w in weights]

    def work() -> None:
        for layer, weight in enumerate(weights):
            torch.bmm(values[layer], weight.mT, out=outputs[layer + 1])
        for layer in reversed(range(len(weights))):
            torch.bmm(values[layer + 1].mT, values[layer], out=gradients[layer])
            if layer:
                torch.bmm(values[layer + 1], weights[layer], out=outputs[layer])

    if torch.device(device).type != "cuda":
        return work
    graph = CudaGraph(torch.device(device))
    graph.rehearse(work)
    graph.record(work)
    return graph.replay


def operations(depth: int, width: int, batch: int) -> float:
    """Of the matrix products of one step of one network; the first layer has no gradient for its input."""
    hidden = 6 * batch * width * (width * (depth - 1) + 10)
    return hidden + 4 * batch * width * 784


def matrix_rate(size: int = 2048, repeats: int = 12) -> float:
    """Floating-point operations per second of a large matrix product, the best of a few."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def measure(sides: dict[str, Side], rounds: int, device: str = "cpu", steps: int = 1) -> dict[str, float]:
    """Milliseconds per member and step of each side: medians over shuffled turns of so many steps each."""
    where = torch.device(device)
    for step, _ in sides.values():
        for _ in range(6):  # the first few are launched one by one, and then a step is recorded
            step()
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            step, members = sides[name]
            synchronise(where)
            begin = time.perf_counter()
            for _ in range(steps):
                step()
            synchronise(where)
            times[name].append((time.perf_counter() - begin) / members / steps)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def shares(values: dict[str, float], of: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every side's time as a ratio to some of them."""
    return {
        name: {f"of {other}": round(value / values[other], 3) for other in of if other in values}
        for name, value in values.items()
    }
