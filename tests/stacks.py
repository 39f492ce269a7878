"""Small stacks that train on the digits of scikit-learn."""

from typing import Any

import torch
from torch import nn

from trainability.data import load
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.history import History
from trainability.training.trainer import Training

SEEDS = [3, 4, 5]
KEEP = [0.9, 0.8, 0.5]
SLOPES = [0.01, 0.2, 0.4]


def network(kind: str, number: int) -> nn.Sequential:
    # No bias, and no constant input, goes into a BatchNorm: its gradient is rounding noise, which Adam makes large.
    torch.manual_seed(SEEDS[number])
    drop = 1 - KEEP[number]
    if kind == "fnn":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 24),
            nn.LeakyReLU(SLOPES[number]),
            nn.Dropout(drop),
            nn.Linear(24, 24, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(inplace=True),
            nn.Linear(24, 10),
        )
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(drop),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


MEMBERS = [
    Member(3, lr=1e-3, weight_decay=0.0, lbe=Strength(0.5, 0.2, 0.2)),
    Member(4, lr=3e-3, weight_decay=0.1, lbe=Strength(1.0, 0.5, 0.1)),
    Member(5, lr=1e-2, weight_decay=0.01, lbe=None),
]


def plan(optimizer: str = "adamw", **options: Any) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 2, "batch_size": 64, "optimizer": optimizer, "probes": 1, **options})


def fabric(precision: str, device: str = "cpu"):
    from lightning_fabric import Fabric

    return Fabric(accelerator=device, devices=1, precision=precision)


def training(models, who, precision="32-true", graph=None, device="cpu", **options) -> Training:
    histories = [History("", 0, m.lr, m.seed) for m in who]
    return Training(
        models, who, histories, load("digits"), plan(**options), fabric(precision, device), make_graph=graph
    )


def plain(number: int) -> nn.Sequential:
    torch.manual_seed(number)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 23), nn.ReLU(), nn.Linear(23, 10))
