"""The sides that the benchmarks of whole training steps compare: networks by hand, as an ensemble, and as a stack."""

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import trainability as tr
from trainability.data.dataset import Dataset, Split
from trainability.models import fnn
from trainability.stack.cuda_graphs import CudaGraph
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.devices import fabric_on
from trainability.training.history import History
from trainability.training.trainer import Training
from turns import Side

PRECISIONS = {  # of Lightning Fabric; of torch's float32 products; whether products are in bfloat16
    "32-true": ("32-true", "highest", False),
    "tf32": ("32-true", "high", False),
    "bf16-mixed": ("bf16-mixed", "highest", True),
}


def network(depth: int, width: int, seed: int, device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(seed)
    with torch.device(device):
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
) -> Side:
    """A training here, of which every step sees the same batch, so that a step is timed and not the reading of data."""
    who = [Member(seed, 1e-5, lbe=Strength() if lbe else None) for seed in range(members)]
    models = [network(depth, width, seed, device) for seed in range(members)]
    histories = [History("", depth, 1e-5, seed) for seed in range(members)]
    plan = TrainingConfig(10**6, batch, cuda_graph="auto" if cuda_graph else "off")
    training = Training(models, who, histories, noise(batch), plan, fabric_on(device, precision=precision))
    training.prepare()
    training.stack.module.train()
    fixed = training.batches(0)
    training.batches.current = lambda: fixed
    return Side(training.step, members, training)


def alone(
    depth: int,
    width: int,
    batch: int,
    side: str,
    *,
    device: str = "cpu",
    bf16: bool = False,
    fused: bool | None = None,
) -> Side:
    """A loop by hand over one network: plain, or with the published formula layer by layer."""
    model, x = network(depth, width, 0, device), torch.randn(batch, 784, device=device)
    y = torch.randint(10, (batch,), device=device)
    taken: list[Tensor] = []
    alphas: list[nn.Parameter] = []
    if side == "published":
        for relu in [m for m in model.modules() if isinstance(m, nn.ReLU)]:
            relu.register_forward_hook(lambda _m, _i, output: taken.append(published_entropy(output.float())))
            alphas.append(nn.Parameter(torch.tensor(0.5, device=device)))
    optimizer = torch.optim.Adam([*model.parameters(), *alphas], lr=1e-5, fused=fused)
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

    return Side(step)


def loop(depth: int, width: int, batch: int, members: int, *, device: str = "cpu", bf16: bool = False) -> Side:
    """Plain networks one after another, each with a fused Adam of its own."""
    steps = [alone(depth, width, batch, "plain", device=device, bf16=bf16, fused=True).step for _ in range(members)]
    return Side(lambda: [step() for step in steps], members)


def ensemble(
    depth: int, width: int, batch: int, members: int, *, device: str = "cpu", bf16: bool = False, compiled: bool = False
) -> Side:
    """Plain networks as one by torch.func, as its tutorial on model ensembling does, with one fused Adam.

    Compiled, it is in the mode that records CUDA graphs.
    """
    models = [network(depth, width, seed, device) for seed in range(members)]
    parameters, buffers = stack_module_state(models)
    bare = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(members, batch, 784, device=device)
    y = torch.randint(10, (members, batch), device=device)

    def outputs_of(own: dict[str, Tensor], fixed: dict[str, Tensor], inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(bare, (own, fixed), (inputs,))
        return outputs

    def total(parameters: dict[str, Tensor]) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            outputs = vmap(outputs_of)(parameters, buffers, x)
            return F.cross_entropy(outputs.flatten(0, 1), y.flatten()) * members  # the sum of the members' means

    for tensor in (*parameters.values(), x, y):  # a graph reads them where they are, without copying them first
        torch._dynamo.mark_static_address(tensor)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-5, fused=True)
    forward = torch.compile(total, mode="reduce-overhead", dynamic=False) if compiled else total

    def step() -> None:
        optimizer.zero_grad()
        forward(parameters).backward()
        optimizer.step()

    return Side(step, members)


def published_entropy(a: Tensor) -> Tensor:
    std = torch.std(a.flatten(1), dim=0)
    return (0.5 * torch.log(math.pi * math.e * std**2 + 1)).mean()


def products(depth: int, width: int, batch: int, members: int, *, device: str = "cpu", bf16: bool = False) -> Side:
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
        return Side(work, members)
    graph = CudaGraph(torch.device(device))
    graph.rehearse(work)
    graph.record(work)
    return Side(graph.replay, members)


def operations(depth: int, width: int, batch: int) -> float:
    """Of the matrix products of one step of one network; the first layer has no gradient for its input."""
    hidden = 6 * batch * width * (width * (depth - 1) + 10)
    return hidden + 4 * batch * width * 784
