"""A user's own data: forms of parts, splits, and what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from refusals import refused
from trainability.data.dataset import Split
from trainability.data.own import own_data
from trainability.data.streamed import DatasetPart, LoaderPart, split_of
from trainability.errors import DataError

X, Y = torch.arange(100.0).view(50, 2), torch.arange(50) % 3
PAIR = (X, Y)


class Pairs(Dataset):
    """Pairs that are made as they are asked for."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return X[number], int(Y[number])


class Flow(IterableDataset):
    """Pairs in an order of their own."""

    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Counted(Flow):
    def __len__(self) -> int:
        return 50


@pytest.mark.parametrize(
    "given",
    [
        {"train": PAIR, "validation": PAIR, "test": PAIR},
        {"train": PAIR, "val": PAIR, "test": PAIR, "classes": 3},
        [PAIR, PAIR, PAIR],
        (PAIR, TensorDataset(X, Y), (X.numpy(), Y.numpy().tolist())),
        {"train": DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True), "validation": PAIR, "test": PAIR},
        [Subset(TensorDataset(X, Y), range(50)), PAIR, PAIR],
    ],
)
def test_parts_in_memory_are_taken_as_they_are(given):
    data = own_data(given, "mine")
    for part in (data.train, data.val, data.test):
        assert isinstance(part, Split)
        assert torch.equal(torch.as_tensor(part.inputs), X)
        assert torch.equal(part.targets, Y)
    assert (data.shape, data.classes) == ((2,), 3)


def test_one_part_is_split_by_seed_and_nothing_is_lost_or_twice():
    for given in (PAIR, Pairs()):
        first, again, other = (own_data(given, "mine", seed=seed) for seed in (0, 0, 1))
        rows = [part.first(50).inputs[:, 0] for part in (first.train, first.val, first.test)]
        assert [len(part) for part in rows] == [35, 8, 7]
        assert torch.equal(torch.cat(rows).sort().values, X[:, 0])
        assert torch.equal(rows[0], again.train.first(50).inputs[:, 0])
        assert not torch.equal(rows[0], other.train.first(50).inputs[:, 0])


def test_without_a_test_part_it_is_empty():
    assert len(own_data([PAIR, PAIR], "mine").test) == 0


def test_what_is_not_in_memory_is_read_as_it_is_needed():
    data = own_data({"train": DataLoader(Pairs(), batch_size=8, shuffle=True), "validation": Pairs()}, "mine")
    assert isinstance(data.train, DatasetPart)
    assert isinstance(data.val, DatasetPart)
    assert data.batch_size == 8
    assert torch.equal(data.train.first(3).inputs, X[:3])
    assert torch.equal(torch.cat([chunk.targets for chunk in data.val.chunks(16)]), Y)
    weighted = DataLoader(Pairs(), batch_size=8, sampler=WeightedRandomSampler([1.0] * 50, 50))
    for loader in (weighted, DataLoader(Counted(), batch_size=10)):
        assert isinstance(own_data([loader, PAIR], "mine").train, LoaderPart)


def test_random_split_of_tensors_stays_in_memory():
    parts = random_split(TensorDataset(X, Y), [30, 10, 10], torch.Generator().manual_seed(0))
    data = own_data(parts, "mine")
    assert isinstance(data.train, Split)
    assert torch.equal(data.train.inputs, X[torch.tensor(parts[0].indices)])


def test_inputs_may_be_several_tensors():
    data = own_data(({"ids": X, "mask": X > 3}, Y), "mine")
    assert sorted(data.train.first(4).inputs) == ["ids", "mask"]
    three = own_data([TensorDataset(X, X + 1, Y), PAIR], "mine").train
    assert [tuple(t.shape) for t in three.first(5).inputs] == [(5, 2), (5, 2)]


def test_outputs_are_told_by_targets():
    assert own_data((X, X[:, 0]), "mine").classes == 1
    assert own_data((X, np.zeros((50, 4))), "mine").classes == 4


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, "data-form"),
        (3, "data-form"),
        (X, "data-form"),
        ({"train": PAIR}, "data-form"),
        ({"train": PAIR, "validation": PAIR, "extra": PAIR}, "data-form"),
        ([PAIR, PAIR, PAIR, PAIR], "data-form"),
        ((X, Y[:20]), "lengths-differ"),
        (({"a": X, "b": X[:3]}, Y), "lengths-differ"),
        ((X, [["a"]] * 50), "data-form"),
        ((X, np.array(["a"] * 50)), "not-numbers"),
        ([(X[:1], Y[:1]), PAIR], "too-few"),
        ([(X[:0], Y[:0]), PAIR], "empty"),
        ([PAIR, (X[:0], Y[:0])], "empty"),
        ([DataLoader(Flow(), batch_size=4), PAIR], "no-length"),
        ([iter([PAIR]), PAIR], "no-length"),
        ([DataLoader([], batch_size=4), PAIR], "empty"),
        (DataLoader(TensorDataset(X, Y), batch_size=4), "needs-validation"),
        ([DataLoader([1, 2, 3], batch_size=2), PAIR], "batch-form"),
    ],
)
def test_other_forms_are_refused(given, code):
    with refused(DataError, code):
        own_data(given, "mine")


def test_what_samples_draw_depends_on_their_seed_alone():
    class Noisy(Pairs):
        def __getitem__(self, number):
            return X[number] + torch.rand(2) + float(np.random.rand()), int(Y[number])

    state = torch.get_rng_state()
    plan = [[(3, 7), (4, 8)], [(3, 7), (4, 9)]]
    found = [[batch.inputs for batch in DatasetPart(Noisy(), workers=workers).batches(plan)] for workers in (0, 1)]
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))
    assert torch.equal(found[0][0][0], found[0][1][0])
    assert not torch.equal(found[0][0][1], found[0][1][1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_over_a_loader_depends_on_its_number_alone():
    def loader() -> LoaderPart:
        return LoaderPart(DataLoader(Pairs(), batch_size=8, sampler=WeightedRandomSampler([1.0] * 50, 50)))

    first, again = ([batch.inputs for batch in part.once(2)] for part in (loader(), loader()))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], next(iter(loader().once(3))).inputs)


def test_a_loader_that_ends_before_its_length_is_refused():
    class Short(Counted):
        def __iter__(self):
            return iter([(X[0], Y[0])] * 5)

    fed = own_data([DataLoader(Short(), batch_size=2), PAIR], "mine").train
    with refused(DataError, "loader-length"):
        list(fed.chunks(10))


@pytest.mark.parametrize("batch", [X, {"x": X}, [X], "text", 3])
def test_a_batch_of_another_form_is_refused(batch):
    with refused(DataError, "batch-form"):
        split_of(batch)
