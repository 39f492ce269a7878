"""The comparison of remedies on a user's own model and data, from Python."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from recipes_for_tests import last_state
from refusals import refused
from trainability import TAT, compare
from trainability.errors import ArgumentError, ArgumentTypeError, ConfigError, DataError
from trainability.experiments.comparison import Comparison


def weights(folder: Path) -> dict[str, Tensor]:
    return last_state(folder)["weights"]


class Drawn(Dataset):
    """Noisy samples, made as they are asked for."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 40)[number].repeat(4) + 0.1 * torch.rand(4)
        return x, x.sum() * float(np.random.rand())


def _in_memory() -> object:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 4, generator=generator)
    return [(x, x.sum(1)), (x[:8], x[:8].sum(1))]


class Same(Dataset):
    """The samples of `_in_memory`, one by one."""

    def __init__(self, part: int) -> None:
        self.x, self.y = _in_memory()[part]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.x[number], self.y[number]


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - targets).square().mean()


def small(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))


def compared(data: object, out: Path, **changes: object) -> Comparison:
    given = {"remedies": ["default", "he"], "loss_fn": squared, "seeds": 2, "epochs": 2, "batch_size": 8, **changes}
    settings = {"engine.compile": "off", "engine.threads": 1, "probes": 1}
    return compare(given.pop("make_model", small), data, out=out, settings=settings, progress=False, **given)


def stacks(out: Path) -> list[dict[str, Tensor]]:
    return [weights(folder) for folder in sorted((out / "stacks").iterdir())]


def test_samples_that_are_read_one_by_one_train_as_those_in_memory(tmp_path):
    loader = DataLoader(Same(0), batch_size=8, shuffle=True, num_workers=2)
    for name, data in (("memory", _in_memory()), ("dataset", [Same(0), Same(1)]), ("loader", [loader, Same(1)])):
        compared(data, tmp_path / name)
    expected = stacks(tmp_path / "memory")
    for name in ("dataset", "loader"):
        for found, wanted in zip(stacks(tmp_path / name), expected, strict=True):
            assert all(torch.equal(found[key], value) for key, value in wanted.items())


class Counted(IterableDataset):
    """A stream with a length."""

    def __len__(self) -> int:
        return 40

    def __iter__(self):
        return ((Drawn()[number]) for number in range(40))


@pytest.mark.parametrize("kind", ["samples", "loader", "stream"])
def test_a_run_on_samples_that_draw_is_taken_up_to_the_bit(kind, tmp_path, monkeypatch):
    data = {
        "samples": [Drawn(), Drawn()],
        "loader": [DataLoader(Drawn(), batch_size=8, shuffle=True, num_workers=1), Drawn()],
        "stream": [DataLoader(Counted(), batch_size=8), Drawn()],
    }[kind]
    compared(data, tmp_path / "whole", epochs=4)
    calls = []

    def stop(_fabric: object):
        from contextlib import nullcontext

        return nullcontext(lambda _steps: calls.append(0) or len(calls) == 11)

    with monkeypatch.context() as patched:
        patched.setattr("trainability.experiments.run.deferred", stop)
        assert compared(data, tmp_path / "parts", epochs=4).interrupted
    assert not compared(data, tmp_path / "parts", epochs=4, existing="resume").interrupted
    for found, wanted in zip(stacks(tmp_path / "parts"), stacks(tmp_path / "whole"), strict=True):
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_networks_that_are_not_alike_run_one_after_another(tmp_path):
    def odd() -> nn.Module:
        return small(5 + int(torch.randint(3, ())))  # as an architecture that is drawn

    comparison = compared(_in_memory(), tmp_path / "out", make_model=odd, seeds=3)
    assert [history.status for history in comparison.histories] == ["done"] * 6
    assert any("one after another" in note for note in comparison.notes)
    again = compared(_in_memory(), tmp_path / "out", make_model=odd, seeds=3, existing="resume")
    assert [history.test for history in again.histories] == [history.test for history in comparison.histories]


def test_without_a_test_part_the_validation_figure_stands(tmp_path):
    history = compared(_in_memory(), tmp_path / "out").histories[0]
    assert history.test is None
    assert history.val is not None


def test_metrics_are_of_the_whole_part_and_the_first_decides(tmp_path):
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(1) - targets).max()

    metrics = {"spread": (spread, "min"), "bias": (lambda o, t: o.squeeze(1) - t, "max")}
    comparison = compared(_in_memory(), tmp_path / "out", metrics=metrics)
    history = comparison.histories[0]
    assert comparison.task.metric.name == history.metric == "spread"
    x, y = _in_memory()[1]
    model = small()
    model.load_state_dict({name: value[0] for name, value in stacks(tmp_path / "out")[0].items()})
    with torch.no_grad():
        error = model(x).squeeze(1) - y
    assert history.val == pytest.approx(float(error.max()), rel=1e-5)
    assert history.scores[-1].others["val_bias"] == pytest.approx(float(error.mean()), rel=1e-5)


def test_objects_of_torchmetrics_are_gathered_over_batches(tmp_path):
    regression = pytest.importorskip("torchmetrics.regression", reason="torchmetrics is not installed")
    comparison = compared(
        [(torch.randn(40, 4), torch.randn(40, 1))] * 2,
        tmp_path / "out",
        loss_fn=nn.functional.mse_loss,
        metrics={"r2": (regression.R2Score, "max"), "mse": (regression.MeanSquaredError(), "min")},
    )
    first = comparison.histories[0].scores[-1]
    assert first.val is not None
    assert first.others["val_mse"] > 0


def test_remedies_may_be_objects_and_lists(tmp_path):
    remedies = [TAT(eta=0.25), ["he", "lbe"], "default"]
    comparison = compared(_in_memory(), tmp_path / "out", remedies=remedies)
    assert [side.remedies.name for side in comparison.sides] == ["tat", "he+lbe", "default"]


class Reshapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(-1, 3))


class DrawsInPython(Reshapes):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * random.random())


class DrawsInNumPy(Reshapes):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * float(np.random.rand()))


class Breaks(Same):
    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if number == 33:
            raise FileNotFoundError("image 33")
        return super().__getitem__(number)


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"make_model": lambda: "model"}, ConfigError, "not-a-module"),
        ({"make_model": lambda: 1 / 0}, ConfigError, "own-code"),
        ({"make_model": Reshapes}, ConfigError, "own-code"),
        ({"make_model": DrawsInPython}, ConfigError, "draws-in-python"),
        ({"make_model": DrawsInNumPy}, ConfigError, "draws-in-python"),
        ({"loss_fn": lambda o, t: o[0, 7]}, ConfigError, "own-code"),
        ({"loss_fn": lambda o, t: (o - t) ** 2}, ConfigError, "loss-shape"),
        ({"loss_fn": lambda o, t: None}, ConfigError, "loss-shape"),
        ({"loss_fn": lambda o, t: o.detach().mean()}, ConfigError, "no-gradient"),
        ({"metrics": {"m": (lambda o, t: 1 / 0, "min")}}, ConfigError, "own-code"),
        ({"metrics": {"m": (lambda o, t: "good", "min")}}, ConfigError, "metric-value"),
        ({"metrics": {"m": (lambda o, t: 1.0, "least")}}, ConfigError, "unknown-choice"),
        ({"metrics": {"m": squared}}, ArgumentTypeError, "wrong-type"),
        ({"loss_fn": None}, ConfigError, "targets"),
        ({"loss_fn": None, "metrics": {"m": (squared, "min")}}, ArgumentError, "missing-setting"),
        ({"task": "classification"}, ArgumentError, "settings-conflict"),
        ({"make_model": small()}, ArgumentTypeError, "not-a-function"),
        ({"make_model": 3}, ArgumentTypeError, "wrong-type"),
        ({"options": {"depth": 3}}, ConfigError, "own-code"),
        ({"data": [Breaks(0), Same(1)]}, ConfigError, "own-code"),
        ({"data": [DataLoader(Breaks(0), batch_size=8, num_workers=1), Same(1)]}, ConfigError, "own-code"),
        ({"data": (torch.zeros(9, 4), torch.zeros(3))}, DataError, "lengths-differ"),
        ({"remedies": ["hee"]}, ConfigError, "unknown-choice"),
    ],
)
def test_what_is_wrong_in_the_users_own_is_said_and_nothing_is_left(changes, error, code, tmp_path):
    data = changes.pop("data", _in_memory())
    with refused(error, code):
        compared(data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_dropout_and_other_draws_of_torch_are_not_taken_for_pythons(tmp_path):
    def noisy() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 1))

    assert compared(_in_memory(), tmp_path / "out", make_model=noisy).histories[0].status == "done"


def sorted_first(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch in the order of its targets, which depends on all samples that it is given."""
    x, y = (torch.stack(part) for part in zip(*sorted(samples, key=lambda sample: float(sample[1])), strict=True))
    return x - x.mean(0), y


def test_what_collates_samples_is_given_those_of_one_network(tmp_path):
    data = [DataLoader(Same(0), batch_size=8, collate_fn=sorted_first), Same(1)]
    three = compared(data, tmp_path / "three", seeds=3, remedies=["default"])
    one = compared(data, tmp_path / "one", seeds=[1], remedies=["default"])
    assert three.histories[1].val == pytest.approx(one.histories[0].val, rel=1e-6)
    assert any("collates" in note for note in three.notes)


def test_models_that_contain_the_same_module_do_not_share_its_weights(tmp_path):
    trunk = nn.Linear(4, 6)
    before = trunk.weight.detach().clone()
    comparison = compared(
        _in_memory(), tmp_path / "out", make_model=lambda: nn.Sequential(trunk, nn.ReLU(), nn.Linear(6, 1))
    )
    assert torch.equal(trunk.weight, before)
    alone = compared(
        _in_memory(),
        tmp_path / "alone",
        make_model=lambda: nn.Sequential(trunk, nn.ReLU(), nn.Linear(6, 1)),
        remedies=["he"],
        seeds=[1],
    )
    assert comparison.histories[3].val == pytest.approx(alone.histories[0].val, rel=1e-6)


def test_other_data_are_not_resumed(tmp_path):
    compared(_in_memory(), tmp_path / "out")
    (x, y), part = _in_memory()
    with refused(ConfigError, "source-changed"):
        compared([(x, -y), part], tmp_path / "out", existing="resume")


def noisy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return squared(outputs + 0.1 * torch.randn(outputs.shape), targets)


def test_what_a_loss_draws_is_repeated_and_the_random_state_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    first, again = (
        compared(_in_memory(), tmp_path / name, loss_fn=noisy_loss, seeds=seeds)
        for name, seeds in (("first", 2), ("again", [1]))
    )
    assert first.histories[1].val == pytest.approx(again.histories[0].val, rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return squared(outputs, targets) * self.scale.exp()


def test_a_loss_may_be_an_object_or_its_class_but_not_one_with_parameters(tmp_path):
    data = [(part[0], part[1].unsqueeze(1)) for part in _in_memory()]
    found = [
        compared(data, tmp_path / str(n), loss_fn=loss).histories[0].val
        for n, loss in enumerate((nn.functional.mse_loss, nn.MSELoss(), nn.MSELoss))
    ]
    assert found[0] == found[1] == found[2]
    with refused(ConfigError, "loss-parameters"):
        compared(data, tmp_path / "out", loss_fn=Weighted())


def test_no_process_of_a_loader_outlives_the_comparison(tmp_path):
    import psutil

    compared([DataLoader(Same(0), batch_size=8, num_workers=2), Same(1)], tmp_path / "out")
    assert not psutil.Process().children()


class Late(Same):
    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.x[number], torch.tensor(7 if number == 35 else 0)


def test_labels_that_do_not_fit_are_told_whenever_they_come(tmp_path):
    classifier = lambda: nn.Linear(4, 3)  # noqa: E731
    with refused(ConfigError, "own-code", match="in training"):
        compared([Late(0), Late(1)], tmp_path / "out", make_model=classifier, loss_fn=None)
    labels = torch.zeros(40, dtype=torch.long)
    labels[35] = 7
    with refused(ConfigError, "targets"):
        compared([(Same(0).x, labels)] * 2, tmp_path / "out", make_model=classifier, loss_fn=None)
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_finite_are_refused(tmp_path):
    x, y = _in_memory()[0]
    x[3, 2] = torch.nan
    with refused(DataError, "not-finite", match="sample 3"):
        compared([(x, y), _in_memory()[1]], tmp_path / "out")
