"""How near a training step with LBE comes to its own matrix products, which no implementation can do without.

Aim, of one CUDA device: at depth 50 and 500 and width 1000 a step takes at most one and a half times its bare matrix
products at the same precision, and a twentieth of the published loop. Sides take turns within one process; times are
medians of turns of several steps, with the device waited for around each turn. "recorded" is the step as one CUDA
graph, "launched" the same step operation by operation; on a CPU there is the second alone. The bare products have
weights and activations of their own for every layer, and on CUDA they are a graph too.

    python benchmarks/floor.py --device cuda [--depths 50 500] [--members 16] [--out results/floor.json]
    python benchmarks/floor.py --depths 50 --members 1 --precisions 32-true        # on a CPU, some minutes
"""

import argparse
import gc
import json
import sys
from pathlib import Path

import torch

from records import keep
from sides import Side, alone, measure, operations, products, shares, stacked
from trainability.training.memory import free_bytes, least_bytes
from trainability.training.runtime import tune_allocator

_PRECISIONS = {  # of Lightning Fabric; of torch's float32 products; whether products are in bfloat16
    "32-true": ("32-true", "highest", False),
    "tf32": ("32-true", "high", False),
    "bf16-mixed": ("bf16-mixed", "highest", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--depths", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--precisions", nargs="+", choices=list(_PRECISIONS), default=list(_PRECISIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tune_allocator()
    rows: list[dict[str, object]] = []
    for depth in args.depths:
        for precision in args.precisions:
            rows += measured(args, depth, precision)
            gc.collect()
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    keep(args.out, " ".join(["python", *sys.argv]), accelerator=name, rows=rows)


def measured(args: argparse.Namespace, depth: int, precision: str) -> list[dict[str, object]]:
    name, matmul, bf16 = _PRECISIONS[precision]
    torch.set_float32_matmul_precision(matmul)
    shape = (depth, args.width, args.batch)
    on = {"device": args.device}
    cuda = args.device.startswith("cuda")
    lbe = stacked(*shape, 1, lbe=True, **on, precision=name)
    sides: dict[str, Side] = {
        "floor": (products(*shape, 1, **on, bf16=bf16), 1),
        "published": (alone(*shape, "published", **on, bf16=bf16), 1),
        "plain": (alone(*shape, "plain", **on, bf16=bf16), 1),
        "lbe, recorded" if cuda else "lbe, launched": (lbe.step, 1),
    }
    trained = {"lbe, recorded": lbe}
    if cuda:
        launched = stacked(*shape, 1, lbe=True, **on, precision=name, cuda_graph=False)
        sides["lbe, launched"] = (launched.step, 1)
    # Activations, gradients and what the term reads take about as much again as the weights and the optimiser.
    fit = free_bytes(torch.device(args.device)) // (3 * least_bytes(lbe.stack.models[0]))
    members = min(args.members, fit)
    if members > 1:
        several = stacked(*shape, members, lbe=True, **on, precision=name)
        sides["floor, stack"] = (products(*shape, members, **on, bf16=bf16), members)
        sides["lbe, stack"] = (several.step, members)
        trained["lbe, stack"] = several
    ms = measure(sides, args.rounds, args.device, args.steps)
    of = shares(ms, ["floor", "published", "floor, stack"])
    rows: list[dict[str, object]] = []
    for side, value in ms.items():
        row = {"network": f"fnn{depth}x{args.width}", "batch": args.batch, "precision": precision, "side": side}
        row |= {"members": sides[side][1], "ms_per_member_step": round(value, 3)}
        row |= {"member_steps_per_second": round(1e3 / value, 1), **of[side]}
        row["gflops"] = round(operations(*shape) / (value / 1e3) / 1e9)
        if side in trained:
            row["execution"] = {k: v for k, v in trained[side].execution.items() if k in ("members", "not_recorded")}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


if __name__ == "__main__":
    main()
