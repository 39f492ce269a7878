"""What gates do to the correlation and the mutual information of two neurons, beside the theorem on IC layers.

    python benchmarks/dropout.py --out results/gates.json

Gaussian pairs of several correlations, with neurons of mean zero and of mean one, behind gates of keep probability 0.5,
0.8 and 0.95; and the same gated pairs through the nearest-neighbor estimate for mixtures and the Gaussian formula.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from records import keep as keep_record
from trainability.dependence.dropout import dropout_effects
from trainability.dependence.pairs import mutual_information

SAMPLES, REPEATS = 2000, 40


def pair(rho: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(SAMPLES, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * z


def gaussian(rho: float, keep: float) -> dict[str, float]:
    """What the Gaussian formula makes of gated pairs, over the information without gates; mean and error of ten."""
    found = []
    for seed in range(10):
        x, y = pair(rho, seed)
        generator = torch.Generator().manual_seed(100 + seed)
        gated = [v * (torch.rand(SAMPLES, generator=generator) < keep) for v in (x, y)]
        found.append(float(mutual_information(*gated, method="gaussian")) / (-0.5 * math.log(1 - rho**2)))
    values = torch.tensor(found)
    return {"gaussian": float(values.mean()), "gaussian_error": float(values.std()) / math.sqrt(10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for rho in (0.3, 0.6, 0.9):
        for effect in dropout_effects(*pair(rho, 0), repeats=REPEATS):
            row = {"rho": rho, **effect.to_dict()}
            if effect.mean == 0:
                row |= gaussian(rho, effect.keep)
            rows.append(row)
            print(", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    keep_record(args.out, "python benchmarks/dropout.py", samples=SAMPLES, repeats=REPEATS, results=rows)


if __name__ == "__main__":
    main()
