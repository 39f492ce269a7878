"""Recipes of every task, from a user's own file to the results."""

import math
from pathlib import Path

import pytest

from recipes_for_tests import recipe
from trainability.errors import ConfigError
from trainability.experiments.comparison import Comparison
from trainability.experiments.run import run

TWO = {
    "compare": {"remedies": ["he", "he+lbe"]},
    "seeds": 2,
    "epochs": 3,
    "batch_size": 32,
    "optimizer": {"lr": 0.005},
}


def trained(folder: Path, source: str, own: dict[str, str] | None = None, **changes: object) -> Comparison:
    """What a run of the recipe leaves, where ``source`` is the user's file and ``own`` names functions in it."""
    make = {"model": "make", "data": "make_data", **(own or {})}
    file = folder / f"{folder.name}.py"  # a name of its own, as modules are known by it
    file.write_text("import math\n\nimport torch\nfrom torch import nn\n\n\n" + source)
    content = {**{section: {"name": f"{file}:{name}"} for section, name in make.items()}, "probes": 1, **changes}
    return run(recipe(**content, engine={"compile": "off"}), folder / "out")


def learned(comparison: Comparison, name: str) -> None:
    """All networks got through, and better by the main metric than chance and than after an epoch."""
    metric, chance = comparison.task.metric, comparison.chance
    for side in comparison.sides:
        for history in side.histories:
            assert history.status == "done"
            result = history.result()
            assert metric.exceeds(result[f"test_{name}"], chance, 0.1 * abs(chance))
            first, *_, last = (point.test for point in history.scores)
            assert metric.exceeds(last, first)


TABLE = """
def make_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(640, 6, generator=generator)
    return x, x[:, 0] * x[:, 1] + x[:, 2] + 5


def make():
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
"""


def test_regression_on_a_table(tmp_path):
    comparison = trained(tmp_path, TABLE, task={"name": "regression"}, **{**TWO, "epochs": 12})
    learned(comparison, "mse")
    assert {"test_mse", "test_mae", "test_r2"} <= comparison.sides[1].histories[1].result().keys()
    for history in comparison.sides[0].histories:  # R² is of the same test set as the mean squared error
        result = history.result()
        assert result["test_r2"] == pytest.approx(1 - result["test_mse"] / comparison.chance, rel=1e-4)


AUTOENCODER = """
def make():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32), nn.ReLU(),
        nn.Linear(32, 64),
    )
"""


def test_an_autoencoder_on_digits(tmp_path):
    task = {"name": "reconstruction", "metric": "mse"}
    comparison = trained(tmp_path, AUTOENCODER, data={"name": "digits"}, task=task, **TWO)
    learned(comparison, "mse")


def test_an_autoencoder_of_the_packages_own_is_told_where_ssim_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="metric: mse") as caught:
        run(recipe(task={"name": "reconstruction"}), tmp_path / "out")
    assert caught.value.code == "targets"
    done = run(recipe(task={"name": "reconstruction", "metric": "mse"}), tmp_path / "out")
    assert done.sides[0].histories[0].status == "done"


SEQUENCES = """
class Encoder(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embedding = nn.Embedding(12, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, outputs)

    def encoded(self, tokens, padding):
        return self.encoder(self.embedding(tokens), src_key_padding_mask=padding)


class Classifier(Encoder):
    def forward(self, tokens, padding):
        real = (~padding).unsqueeze(-1)
        pooled = (self.encoded(tokens, padding) * real).sum(1) / real.sum(1)
        return {"logits": self.head(pooled), "pooled": pooled}


class Tagger(Encoder):
    def forward(self, tokens, padding):
        return self.head(self.encoded(tokens, padding))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(12, 16), nn.Linear(16, 32), nn.Linear(32, 12)

    def forward(self, tokens):
        return self.head(torch.tanh(self.rnn(self.embedding(tokens))))


def sequences():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 12, (480, 9), generator=generator)
    padding = torch.arange(9) >= torch.randint(3, 10, (480, 1), generator=generator)
    return tokens.masked_fill(padding, 0), padding


def make_data():
    tokens, padding = sequences()
    return {"tokens": tokens, "padding": padding}, (tokens == 3).any(1).long()


def labels_of_tokens():
    tokens, padding = sequences()
    return {"tokens": tokens, "padding": padding}, (tokens % 2).masked_fill(padding, -100)


def counting():
    tokens = (torch.arange(9) + torch.randint(12, (480, 1), generator=torch.Generator().manual_seed(0))) % 12
    return tokens, tokens


def make():
    return Classifier(2)


def make_tagger():
    return Tagger(2)


def make_language():
    return Language()
"""


QUICK = {"seeds": 2, "epochs": 6, "batch_size": 32, "optimizer": {"lr": 0.005}}


@pytest.mark.parametrize("seeds", [1, 2])
def test_sequences_with_padding_are_classified(tmp_path, seeds):
    learned(trained(tmp_path, SEQUENCES, **{**QUICK, "seeds": seeds}), "accuracy")


def test_tokens_with_padding_are_labeled(tmp_path):
    own = {"model": "make_tagger", "data": "labels_of_tokens"}
    learned(trained(tmp_path, SEQUENCES, own, task={"name": "tokens"}, **QUICK), "accuracy")


def test_next_tokens_are_predicted(tmp_path):
    own = {"model": "make_language", "data": "counting"}
    comparison = trained(tmp_path, SEQUENCES, own, task={"name": "next-token"}, **QUICK)
    learned(comparison, "cross_entropy")
    result = comparison.sides[0].histories[0].result()
    assert result["test_perplexity"] == pytest.approx(math.exp(result["test_cross_entropy"]), rel=1e-5)
    assert result["test_perplexity"] < 12  # tokens
