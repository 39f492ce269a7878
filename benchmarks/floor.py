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
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from parts import Row, measure_parts, options
from sides import PRECISIONS, alone, operations, products, stacked
from trainability.models import fnn
from trainability.stack.memory import free_bytes, least_bytes
from turns import Side, compare


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--members", type=int, default=16, help="fewer, where so many do not fit")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.set_defaults(rounds=7, steps=5)
    args = parser.parse_args()
    parts = [{"depths": depth, "precisions": precision} for depth in args.depths for precision in args.precisions]
    return measure_parts(args, parts, measured)


def measured(args: argparse.Namespace) -> Iterator[Row]:
    fabric, matmul, bf16 = PRECISIONS[args.precisions]
    torch.set_float32_matmul_precision(matmul)
    shape = (args.depths, args.width, args.batch)
    here = {"device": args.device}
    cuda = torch.device(args.device).type == "cuda"
    ours = partial(stacked, *shape, **here, precision=fabric)
    makers: dict[str, Callable[[], Side]] = {
        "floor": partial(products, *shape, 1, **here, bf16=bf16),
        "published": partial(alone, *shape, "published", **here, bf16=bf16),
        "plain": partial(alone, *shape, "plain", **here, bf16=bf16),
        "lbe, recorded" if cuda else "lbe, launched": partial(ours, 1, True),
    }
    if cuda:
        makers["lbe, launched"] = partial(ours, 1, True, cuda_graph=False)
    members = min(args.members, members_beside(args, len(makers)))
    if members > 1:
        makers["floor, stack"] = partial(products, *shape, members, **here, bf16=bf16)
        makers["lbe, stack"] = partial(ours, members, True)
    about: Row = {"network": f"fnn{args.depths}x{args.width}", "batch": args.batch, "precision": args.precisions}
    of = ["floor", "published", "floor, stack"]
    yield from compare(makers, about, operations(*shape), of, args, dtype=torch.bfloat16 if bf16 else torch.float32)


def members_beside(args: argparse.Namespace, singles: int) -> int:
    """How many networks fit into a stack beside so many single ones."""
    with torch.device("meta"):
        least = least_bytes(fnn(784, args.depths, args.width, 10))
    # Activations, gradients and what the term reads take about as much again as the weights and the optimizer.
    return free_bytes(torch.device(args.device)) // (3 * least) - singles


if __name__ == "__main__":
    sys.exit(main())
