"""Reading the activations of one call, against hooks of torch's own."""

import torch
from torch import Tensor, nn

from trainability.introspect.hooks import Place
from trainability.introspect.readings import read_activations


class Twice(nn.Module):
    """Calls one layer twice, changes a value in place, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.linear(self.linear(x).mul_(2))


def test_values_are_those_of_a_forward_hook_in_order_of_execution():
    torch.manual_seed(0)
    model = Twice()
    x = torch.randn(3, 4)
    seen: list[Tensor] = []
    with model.linear.register_forward_hook(lambda m, a, y: seen.append(y.detach().clone())):
        model(x)
    found = read_activations(model, x, ["linear"], Tensor.clone)
    assert [(reading.name, reading.call) for reading in found] == [("linear", 1), ("linear", 2)]
    assert all(torch.equal(reading.value, value) for reading, value in zip(found, seen, strict=True))


def test_the_model_stays_as_it_was():
    model = Twice()
    model.train()
    read_activations(model, torch.randn(3, 4), ["linear"], Tensor.sum)
    assert model.count == 0
    assert model.training
    assert not model.linear._forward_hooks


def test_none_leaves_a_reading_out_and_inputs_are_places_too():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 2), nn.Identity()), torch.randn(3, 4)
    wide = read_activations(
        model, {"input": x}, [Place("0", given=True), "1"], lambda a: a.clone() if a.shape[1] > 2 else None
    )
    assert [reading.name for reading in wide] == ["input of 0"]
    assert torch.equal(wide[0].value, x)
