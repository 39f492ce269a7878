"""What the spread of LBE over seeds comes from: initial weights or the order of the batches.

Trains the default-initialized MNIST network of 30 layers with LBE for every pair of a seed of the weights and a seed
of the order, and prints the test accuracy after every epoch and the lowest batch entropy of a layer at the end.

    python benchmarks/spread.py --data-dir .data [--seeds 3] [--epochs 5] [--out FILE.json]
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch

from trainability.data import load
from trainability.models import fnn
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.history import History
from trainability.training.trainer import Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = load("mnist", args.data_dir)
    pairs = list(product(range(args.seeds), repeat=2))
    models = []
    for weights, _ in pairs:
        torch.manual_seed(weights)
        models.append(fnn(784, depth=30, width=128, classes=10))
    histories = [History("lbe", 30, 1e-3, order) for _, order in pairs]
    members = [Member(order, lbe=Strength()) for _, order in pairs]
    training = Training(models, members, histories, data, TrainingConfig(args.epochs, 512))
    training.prepare()
    while not training.done:
        training.advance()
    rows = []
    for (weights, order), history in zip(pairs, histories, strict=True):
        accuracy = [round(point.test, 2) for point in history.scores]
        rows.append({"weights": weights, "order": order, "accuracy": accuracy, "lowest": min(history.flow[-1].entropy)})
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
