"""Models and data of several kinds, each compared by one command: the figures are in docs/results.md."""

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

PIXELS, LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(PIXELS, dtype=torch.float32) / 16, torch.tensor(LABELS)


class Rows(nn.Module):
    """An LSTM over the rows of an image, which cannot be mapped over the members of a stack."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, num_layers=2, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])


def data():
    return X, Y


class Dict(nn.Module):
    def __init__(self, depth=20):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), *[m for _ in range(depth) for m in (nn.Linear(64, 64), nn.ReLU())]
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        hidden = self.body(x)
        return {"hidden": hidden, "logits": self.head(hidden)}


class Noisy(Dataset):
    def __len__(self):
        return 1400

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(64), Y[i]


def loader():
    return {
        "train": DataLoader(Noisy(), batch_size=64, shuffle=True, num_workers=2),
        "validation": (X[1400:1600], Y[1400:1600]),
        "test": (X[1600:], Y[1600:]),
    }


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.1)
        self.encoder, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(32, 10)

    def forward(self, rows, mask):
        hidden = self.encoder(self.embed(rows), src_key_padding_mask=mask)
        keep = (~mask).unsqueeze(-1).float()
        return {"logits": self.head((hidden * keep).sum(1) / keep.sum(1))}


def padded():
    rows = X.view(-1, 8, 8)
    mask = torch.zeros(len(X), 8, dtype=torch.bool)
    mask[::3, 6:] = True  # a third of the sequences is shorter
    return {"rows": rows, "mask": mask}, Y


def autoencoder(depth=5):
    sizes = [64, *[64] * depth, 10, *[64] * depth]
    return nn.Sequential(
        nn.Flatten(), *[m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())], nn.Linear(64, 64)
    )
