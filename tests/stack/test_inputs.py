"""Inputs of a stack: one tensor or several, of any type of numbers, and what is refused."""

from collections import OrderedDict, UserDict

import pytest
import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.stack import ways
from trainability.stack.memory import bytes_per_member
from trainability.stack.module import Stack


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.relu, self.head = nn.Embedding(11, 4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.relu(self.embedding(ids)).mul(mask.unsqueeze(-1)).sum(1))


IDS, MASK = torch.randint(11, (3, 6, 5)), torch.rand(3, 6, 5) > 0.5
KINDS = {
    "tuple": lambda ids, mask: (ids, mask),
    "list": lambda ids, mask: [ids, mask],
    "dictionary": lambda ids, mask: {"mask": mask, "ids": ids},
    "ordered": lambda ids, mask: OrderedDict(ids=ids, mask=mask),
    "mapping": lambda ids, mask: UserDict(ids=ids, mask=mask),
}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_given_as_each_model_takes_them(kind, members):
    models = [Masked() for _ in range(members)]
    stack = Stack(models, taps=["relu"])
    inputs = KINDS[kind](IDS[:members], MASK[:members])
    ways.prepare(stack, inputs)
    for way in ["alone"] if members == 1 else ["vmap", "loop"]:
        stack.way = way
        outputs, readings = stack(inputs)
        predicted = stack.predict(KINDS[kind](IDS[0], MASK[0]))
        for e, model in enumerate(models):
            torch.testing.assert_close(outputs[e], model(IDS[e], MASK[e]))
            torch.testing.assert_close(predicted[e], model(IDS[0], MASK[0]))
            read = model.relu(model.embedding(IDS[e]))
            torch.testing.assert_close(readings[0].mean[e, 0], read.mean(0).flatten())


def test_a_stack_that_is_compiled_takes_several():
    models = [Masked() for _ in range(3)]
    stack = Stack(models)
    stack.compile(backend="eager")
    outputs = stack({"ids": IDS, "mask": MASK}).outputs
    for e, model in enumerate(models):
        torch.testing.assert_close(outputs[e], model(IDS[e], MASK[e]))


def test_memory_is_of_all_inputs():
    model = Masked()
    ids, mask = IDS[0].clone(), MASK[0].float()
    one = bytes_per_member(model, {"ids": ids, "mask": mask})
    two = bytes_per_member(model, {"ids": ids.repeat(2, 1), "mask": mask.repeat(2, 1)})
    given, kept = (
        30 * (8 + 4),
        30 * (8 + 4 + 4 * 4) + 6 * 4 * 4,
    )  # both, each token's activations, and the sums
    assert two - one == pytest.approx(3.3 * (given + kept), rel=0.01)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ((IDS, None), "wrong-type"),
        ((IDS, (MASK, MASK)), "wrong-type"),
        ({"ids": IDS, "mask": "all"}, "wrong-type"),
        ({1: IDS}, "wrong-type"),
        ((), "wrong-type"),
        ("ids", "wrong-type"),
        (torch.zeros(3, 2, dtype=torch.complex64), "wrong-type"),
        ((IDS, MASK.to_sparse()), "wrong-type"),
        ((IDS, MASK[:2]), "input-shape"),
        ({"ids": IDS, "mask": torch.ones(3)}, "input-shape"),
    ],
)
def test_inputs_that_are_refused(inputs, code):
    with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
        Stack([Masked() for _ in range(3)])(inputs)
    assert caught.value.code == code
