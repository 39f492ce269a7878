"""What a training step of a stack costs per member, beside single training and the published loop.

Claim: sixteen networks of 30×100 with LBE train as one stack in a quarter of the time per network and step that the
published loop takes, and faster than one of them alone without LBE. Sides take turns within one process; times are
medians. A side is a whole step on inputs that lie ready: forward, LBE, backward, Adam. The matrix rate is that of this
machine in the same minute, so that rates can be compared between machines.

    python benchmarks/stack.py [--rounds 60] [--out results/stack.json]
"""

import argparse
import json
from pathlib import Path

from records import keep
from sides import Side, alone, matrix_rate, measure, operations, shares, stacked
from trainability.training.runtime import tune_allocator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    allocator = tune_allocator()
    rows: list[dict[str, object]] = []
    for depth, width, batch, members in ((30, 100, 128, 16), (50, 128, 512, 4)):
        sides: dict[str, Side] = {
            "published, one": (alone(depth, width, batch, "published"), 1),
            "plain, one": (alone(depth, width, batch, "plain"), 1),
            "plain, stack": (stacked(depth, width, batch, members, lbe=False).step, members),
            "lbe, stack": (stacked(depth, width, batch, members, lbe=True).step, members),
            "lbe, stack of one": (stacked(depth, width, batch, 1, lbe=True).step, 1),
        }
        before = matrix_rate()
        ms = measure(sides, args.rounds)
        rate = (before + matrix_rate()) / 2
        of = shares(ms, ["published, one", "plain, one"])
        for name, value in ms.items():
            flops = operations(depth, width, batch) / (value / 1e3)
            row = {"network": f"fnn{depth}x{width}", "batch": batch, "members": sides[name][1], "side": name}
            row |= {"ms_per_member_step": round(value, 2), "gflops": round(flops / 1e9)}
            row |= {"share_of_matrix_rate": round(flops / rate, 2), **of[name]}
            rows.append(row)
            print(json.dumps(row), flush=True)
        print(json.dumps({"matrix_gflops": round(rate / 1e9)}), flush=True)
        rows.append({"network": f"fnn{depth}x{width}", "matrix_gflops": round(rate / 1e9)})
    keep(args.out, "python benchmarks/stack.py", allocator=allocator, rows=rows)


if __name__ == "__main__":
    main()
