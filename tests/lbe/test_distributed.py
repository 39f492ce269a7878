"""LBE over two ranks against one process on the whole batch."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import trainability as tr

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def build() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 4)).double()
    x = 5 + torch.randn(40, 8, dtype=torch.float64)
    x[20:] *= 3  # so that the ranks' own statistics differ from the global ones
    return model, x, torch.randint(4, (40,))


def steps(forward: nn.Module, model: nn.Module, lbe: tr.LBE, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
    optimizer = torch.optim.SGD([*forward.parameters(), *lbe.parameters()], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        lbe(nn.functional.cross_entropy(forward(x), y)).backward()
        optimizer.step()
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return {
        "weights": [p.detach().clone() for p in full],
        "alpha": lbe.alpha.detach().clone(),
        "entropy": list(lbe.last.entropy.values()),
        "lbe": lbe.last.lbe,
    }


def worker(rank: int, world: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        model, x, y = build()
        share = slice(rank * 40 // world, (rank + 1) * 40 // world)
        if kind == "ddp":
            forward: nn.Module = nn.parallel.DistributedDataParallel(model)
            lbe = tr.LBE(forward)
        else:
            from torch.distributed.fsdp import fully_shard

            fully_shard(model, mesh=dist.init_device_mesh("cpu", (world,)))
            forward, lbe = model, tr.LBE(model)
        torch.save(steps(forward, model, lbe, x[share], y[share]), f"{folder}/{rank}.pt")
        dist.barrier()  # gloo aborts a process whose peer has gone already
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_equal_one_process_on_the_whole_batch(kind):
    model, x, y = build()
    expected = steps(model, model, tr.LBE(model), x, y)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(2, kind, folder), nprocs=2)
        for rank in range(2):
            found = torch.load(Path(folder) / f"{rank}.pt", weights_only=True)
            assert found["lbe"] == pytest.approx(expected["lbe"], rel=1e-9)
            assert found["entropy"] == pytest.approx(expected["entropy"], rel=1e-9)
            torch.testing.assert_close(found["alpha"], expected["alpha"], rtol=1e-9, atol=1e-12)
            for a, b in zip(found["weights"], expected["weights"], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
