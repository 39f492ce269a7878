"""What a training step of several networks at once costs per network, beside other ways to train as many.

Claim: sixteen networks of 30×100 with LBE train as one stack in a quarter of the time per network and step that the
published loop takes, and faster than one of them alone without LBE. A side is a whole step on inputs that lie ready:
forward, LBE where it is named, backward, Adam.

    published, one         one network, the published formula layer by layer
    plain, one             one network
    plain, loop            the networks one after another, each with a fused Adam
    plain, ensemble        torch.func: stacked weights, vmap, one fused Adam
    ensemble, compiled     the same by torch.compile, with CUDA graphs on a GPU
    plain, stack           this package
    lbe, stack             this package, with LBE

Sides of one number of members take turns within one process; times are medians, and compilation is over before they
begin. The matrix rate is that of the device in the same minute, so that rates can be compared between machines.

    python benchmarks/stack.py [--members 1 4 16] [--rounds 60] [--out results/stack.json]
    python benchmarks/stack.py --device cuda --networks 30x100x128 --members 1 4 16 64 256
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from parts import Row, measure_parts, options
from sides import PRECISIONS, alone, ensemble, loop, operations, stacked
from turns import Side, compare


class Network(NamedTuple):
    depth: int
    width: int
    batch: int

    @classmethod
    def of(cls, name: str) -> "Network":
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", name)
        if found is None:
            raise argparse.ArgumentTypeError(f"{name}: take depth, width and batch, such as 30x100x128")
        return cls(*map(int, found.groups()))


NETWORKS = [Network(30, 100, 128), Network(50, 128, 512)]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument(
        "--networks", type=Network.of, nargs="+", default=[Network(30, 100, 128), Network(50, 128, 512)]
    )
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precision", choices=list(PRECISIONS), default="32-true")
    parser.add_argument("--sides", nargs="+", help="these alone")
    parser.set_defaults(rounds=60)
    args = parser.parse_args()
    parts = [{"networks": network, "members": members} for network in args.networks for members in args.members]
    return measure_parts(args, parts, measured)


def measured(args: argparse.Namespace) -> Iterator[Row]:
    depth, width, batch = args.networks
    fabric, matmul, bf16 = PRECISIONS[args.precision]
    torch.set_float32_matmul_precision(matmul)
    here, several = {"device": args.device}, (depth, width, batch, args.members)
    plain = {**here, "bf16": bf16}
    makers: dict[str, Callable[[], Side]] = {
        "published, one": partial(alone, depth, width, batch, "published", **plain),
        "plain, one": partial(alone, depth, width, batch, "plain", **plain),
        "plain, loop": partial(loop, *several, **plain),
        "plain, ensemble": partial(ensemble, *several, **plain),
        "ensemble, compiled": partial(ensemble, *several, **plain, compiled=True),
        "plain, stack": partial(stacked, *several, False, **here, precision=fabric),
        "lbe, stack": partial(stacked, *several, True, **here, precision=fabric),
    }
    yield from compare(
        {name: make for name, make in makers.items() if name in (args.sides or makers)},
        {"network": f"fnn{depth}x{width}", "batch": batch, "at_once": args.members, "precision": args.precision},
        operations(depth, width, batch),
        ["published, one", "plain, one", "plain, loop", "plain, ensemble", "ensemble, compiled"],
        args,
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )


if __name__ == "__main__":
    sys.exit(main())
