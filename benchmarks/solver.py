"""Claim: the constants of any activation in any network are solved for in under 20 ms on one thread.

    python benchmarks/solver.py --out results/solver.json

Every entry of tests/constants/dks.json, the median of several solves after one to warm up. Where the dks package
(`pip install dks absl-py`) is installed it solves the same in the same run, once, as it is slow.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from records import keep
from trainability.signal import DKSTarget, SignalGraph, TATTarget, chain, residual, series, solve

CONSTANTS = Path(__file__).parent.parent / "tests/constants/dks.json"


def graph(name: str) -> SignalGraph:
    if name.startswith("mlp"):
        return chain(int(name.removeprefix("mlp")))
    return series(*[residual(chain(2), 0.5)] * 16, chain(1))


def maximum(name: str) -> Callable[[float, Callable[[float], float]], float]:
    """The subnetwork-maximizing function, as a user of dks writes it for each architecture."""

    def of_chain(x: float, r: Callable[[float], float]) -> float:
        for _ in range(int(name.removeprefix("mlp"))):
            x = r(x)
        return x

    def of_blocks(x: float, r: Callable[[float], float]) -> float:
        y = x
        for _ in range(16):
            y = 0.25 * y + 0.75 * r(r(y))
        return max(r(y), r(r(x)))

    return of_chain if name.startswith("mlp") else of_blocks


def seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        from dks.base.activation_transform import get_transformed_activations
    except ImportError:
        get_transformed_activations = None
    rows = []
    for entry in json.loads(CONSTANTS.read_text())["constants"]:
        name, method, architecture = entry["activation"], entry["method"], entry["graph"]
        target = DKSTarget() if method == "DKS" else TATTarget()
        solve(name, target, graph(architecture))
        own = [seconds(lambda a=architecture, n=name, t=target: solve(n, t, graph(a))) for _ in range(args.repeats)]
        row = {"activation": name, "method": method, "graph": architecture, "ms": round(1e3 * median(own), 2)}
        row["slowest_ms"] = round(1e3 * max(own), 2)
        if get_transformed_activations:
            known = {"gelu": "gelu_exact", "gelu_tanh": "gelu"}.get(name, name)
            took = seconds(
                lambda n=known, m=method, a=architecture: get_transformed_activations(
                    [n], method=m, subnet_max_func=maximum(a)
                )
            )
            row |= {"dks_ms": round(1e3 * took, 1), "ratio": round(took / median(own), 1)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    summary = {"median_ms": median(r["ms"] for r in rows), "largest_ms": max(r["ms"] for r in rows)}
    if get_transformed_activations:
        summary |= {
            "dks_median_ms": median(r["dks_ms"] for r in rows),
            "dks_largest_ms": max(r["dks_ms"] for r in rows),
        }
    print(json.dumps(summary))
    keep(args.out, "python benchmarks/solver.py --out results/solver.json", summary=summary, rows=rows)


if __name__ == "__main__":
    main()
