"""Losses of the members of a stack, and of the processes that share a batch, against those of each alone and of all."""

import copy
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import trainability as tr
from trainability.lbe.stacked import StackLBE
from trainability.stack.module import Stack
from trainability.tasks import task
from trainability.tasks.scoring import mean_loss

CASES = {
    "classification": ((5,), lambda g, n: torch.randint(5, (n,), generator=g), {}),
    "regression": ((3,), lambda g, n: torch.randn(n, 3, generator=g), {"loss": "huber"}),
    "reconstruction": ((12,), lambda g, n: torch.rand(n, 3, 4, generator=g), {"metric": "mse"}),
    "tokens": ((6, 5), lambda g, n: padded(torch.randint(5, (n, 6), generator=g), g), {}),
    "next-token": ((6, 5), lambda g, n: padded(torch.randint(5, (n, 6), generator=g), g), {"padding": 0}),
}


def padded(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return labels.where(torch.arange(6) < torch.randint(1, 7, (len(labels), 1), generator=generator), -100)


def batch(name: str, members: int = 3, samples: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets ``(E, B, ...)`` of a task."""
    generator = torch.Generator().manual_seed(0)
    shape, targets, _ = CASES[name]
    outputs = torch.randn(members, samples, *shape, generator=generator, dtype=torch.float64)
    return outputs.requires_grad_(), torch.stack([targets(generator, samples) for _ in range(members)])


@pytest.mark.parametrize("name", CASES)
def test_losses_of_members_are_those_of_each_alone(name):
    kind = task(name, **CASES[name][2])
    outputs, targets = batch(name)
    alone = [kind.losses(o[None], t[None])[0] for o, t in zip(outputs, targets, strict=True)]
    found = kind.losses(outputs, targets)
    torch.testing.assert_close(found, torch.stack(alone))
    expected = torch.autograd.grad(sum(alone), outputs)[0]
    torch.testing.assert_close(torch.autograd.grad(found.sum(), outputs)[0], expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", CASES)
def test_the_lbe_term_of_a_stack_goes_with_every_loss_and_with_its_negative(name, sign):
    shape, _, settings = CASES[name]
    kind, targets = task(name, **settings), batch(name)[1]
    models = [
        nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, math.prod(shape)), nn.Unflatten(1, shape)).double()
        for _ in range(3)
    ]
    alone = copy.deepcopy(models)
    x = torch.randn(3, 8, 4, dtype=torch.float64)
    stack = Stack(models, taps=["1"])
    lbe = StackLBE(["1"], [0.5] * 3, [0.3] * 3, [0.2] * 3, like=next(models[0].parameters()))
    passed = stack(x)
    totals = lbe(sign * kind.losses(passed.outputs, targets), passed.readings)
    for model, own, label, total in zip(alone, x, targets, totals, strict=True):
        term = tr.LBE(model, where="1", alpha=0.5, beta=0.3, alpha_min=0.2)
        loss = sign * kind.losses(model(own)[None], label[None])[0]
        torch.testing.assert_close(total, term(loss))
        assert float(total.detach()) > float(loss.detach())


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        found = {}
        for name, (_, _, settings) in CASES.items():
            outputs, targets = batch(name)
            share = slice(rank * 8 // world, (rank + 1) * 8 // world)
            losses = task(name, **settings).losses(outputs[:, share], targets[:, share])
            found[name] = losses.detach(), torch.autograd.grad(losses.sum(), outputs)[0]
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()  # gloo aborts a process whose peer has gone already
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_the_mean_over_two_processes_is_the_loss_of_the_whole_batch():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(2, folder), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, (_, _, settings) in CASES.items():
        outputs, targets = batch(name)
        kind = task(name, **settings)
        losses = mean_loss(kind.loss, outputs, targets)
        gradient = torch.autograd.grad(losses.sum(), outputs)[0]
        expected = losses.detach(), gradient
        for whole, one, other in zip(expected, first[name], second[name], strict=True):
            torch.testing.assert_close((one + other) / 2, whole)
