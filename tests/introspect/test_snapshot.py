"""Neither looking at a model nor undoing a remedy leaves a trace, whatever the model does in its forward."""

import random
from collections import OrderedDict, defaultdict, deque

import pytest
import torch
from torch import nn

import trainability as tr
from refusals import refused
from trainability.errors import ArgumentError, StateError
from trainability.introspect.run import observing
from trainability.remedies import Change, Remedy

X = torch.randn(16, 6)


class Frozen(dict):
    def _no(self, *_, **__):
        raise TypeError("this dictionary is read-only")

    clear = update = __setitem__ = __delitem__ = pop = setdefault = _no


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
        self.settings = Frozen(width=6)
        self.register_buffer("seen", torch.zeros(3))
        self.set_up()

    def set_up(self):
        pass

    def change(self):
        pass

    def forward(self, x):
        self.change()
        return self.b(self.relu(self.a(x)))


class TakesAModuleOut(Net):
    def set_up(self):
        self.more = nn.Linear(6, 6)

    def change(self):
        del self._modules["more"]


class AddsModulesAndParameters(Net):
    def change(self):
        self.new = nn.Linear(6, 6)
        self.register_parameter("p", nn.Parameter(torch.ones(6)))
        self.register_buffer("kept", torch.ones(2), persistent=False)
        del self.b.bias
        self.b.bias = nn.Parameter(torch.ones(6))


class ReplacesAParameter(Net):
    def change(self):
        self.a.weight = nn.Parameter(self.a.weight.detach() * 1.1)
        self.seen = self.seen + 1


class MovesHooks(Net):
    def set_up(self):
        self.handles = [self.relu.register_forward_hook(lambda _m, _i, _o: None)]
        self.relu.register_forward_hook(lambda _m, _i, _o: None, with_kwargs=False)

    def change(self):
        self.handles[0].remove()
        self.a.register_forward_pre_hook(lambda _m, _i: None)


class ChangesParametersInPlace(Net):
    def change(self):
        with torch.no_grad():
            self.a.weight.mul_(1.1)
            torch._foreach_mul_([self.b.weight, self.b.bias], 2.0)
        self.a.bias.data.add_(1)


class AssignsData(Net):
    def change(self):
        self.a.weight.data = self.a.weight.data * 1.1


class InitializesAgain(Net):
    def change(self):
        nn.init.zeros_(self.a.weight)


class EmbeddingOfBoundedLength(Net):
    def set_up(self):
        self.embedding = nn.Embedding(16, 6, max_norm=0.5)

    def forward(self, x):
        return super().forward(x + self.embedding(torch.arange(16)))


class TrainsInItsForward(Net):
    def set_up(self):
        self.a.weight.grad = torch.ones(6, 6)

    def change(self):
        with torch.enable_grad():
            optimizer = torch.optim.Adam(self.a.parameters())
            self.a(X).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


class Freezes(Net):
    def change(self):
        self.a.weight.requires_grad_(False)


class FillsContainers(Net):
    def set_up(self):
        self.list, self.set, self.deque = [1], {1}, deque([1, 2], maxlen=2)
        self.ordered, self.default = OrderedDict(a=1, b=2), defaultdict(list)
        self.nested = ({"a": [torch.ones(2)]},)
        self.a.shared = self.b.shared = {"calls": 0}
        self.count, self.tensor = 0, torch.ones(2)

    def change(self):
        self.list.append(2)
        self.set.add(2)
        self.deque.append(3)
        self.ordered.move_to_end("a")
        self.default["x"].append(1)
        self.nested[0]["a"][0].mul_(2)
        self.nested[0]["a"].append(self.count)
        self.a.shared["calls"] += 1
        self.b.shared["more"] = 1
        self.count += 1
        self.tensor += 1


class HidesAModule(Net):
    def set_up(self):
        self.hidden = [nn.BatchNorm1d(6)]

    def forward(self, x):
        return super().forward(self.hidden[0](x))


class Parametrizes(Net):
    def change(self):
        if type(self.a) is nn.Linear:
            nn.utils.parametrizations.weight_norm(self.a)


class TakesAnotherDictionary(Net):
    def change(self):
        self.a.__dict__ = {**self.a.__dict__, "new": 1}


class SpectralNorm(Net):
    def set_up(self):
        nn.utils.spectral_norm(self.a)


def content(value: object) -> object:
    """What a value is, down to the objects of which it is made and the bits of its tensors."""
    if isinstance(value, torch.Tensor):
        grad = None if not value.is_leaf or value.grad is None else content(value.grad)
        return id(value), value.data_ptr(), value.detach().clone().numpy().tobytes(), value.requires_grad, grad
    if isinstance(value, nn.Module):
        return id(value), type(value), id(vars(value)), content(vars(value))
    if isinstance(value, dict):
        return id(value), [(key, content(value[key])) for key in value]
    if isinstance(value, list | tuple | set | deque):
        return id(value), [content(part) for part in value]
    return value if isinstance(value, int | float | str) else id(value)


MODELS = sorted(Net.__subclasses__(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(kind, training):
    model = kind().train(training)
    before = content(model)
    tr.measure(model, X)
    assert content(model) == before
    tr.measure(model, X, X, nn.functional.mse_loss)
    assert content(model) == before


@pytest.mark.parametrize("kind", [Net, *MODELS])
@pytest.mark.parametrize("remedy", [tr.Init("he"), tr.IC(), tr.Normalize("layer"), tr.SELU()])
def test_undo_puts_back_everything(kind, remedy):
    model = kind()
    before = content(model)
    report = tr.apply_(model, remedy, inputs=X)
    assert content(model) != before
    report.undo()
    assert content(model) == before


def test_undo_after_passes_that_change_the_model():
    model = AddsModulesAndParameters()
    before = content(model)
    report = tr.apply_(model, tr.IC(), inputs=X)
    model(X).sum().backward()
    for parameter in model.parameters():
        parameter.grad = None
    report.undo()
    assert content(model) == before


class Fails(Remedy):
    """A remedy that changes something of each kind, and then fails."""

    def plan(self, model, where, inputs):
        def change():
            torch.randn(1)
            random.random()
            model.a.weight.mul_(2)
            model.seen.add_(1)
            model.list.append(3)
            model.c = nn.Linear(2, 2)
            model.relu.register_forward_hook(lambda _m, _i, _o: None)
            raise ZeroDivisionError

        return [(Change("", "a", "b", "c"), change)], {}


def test_a_remedy_that_fails_leaves_nothing():
    model = FillsContainers()
    report = tr.apply_(model, tr.Init("he"))
    before, states = content(model), (torch.get_rng_state().tolist(), random.getstate())
    with pytest.raises(ZeroDivisionError):
        tr.apply_(model, Fails())
    assert content(model) == before
    assert (torch.get_rng_state().tolist(), random.getstate()) == states
    report.undo()  # the failed one does not count as applied later
    with refused(StateError, "nothing-to-undo"):
        report.undo()


def test_a_dry_run_draws_no_random_numbers():
    model = Net()
    state = torch.get_rng_state()
    tr.apply_(model, tr.Init("lsuv"), inputs=X, dry_run=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_remedies_of_a_part_and_of_the_whole_are_undone_in_the_opposite_order():
    model = nn.Sequential(Net(), Net(), Net())
    part = tr.apply_(model[0], tr.Init("he"))
    other = tr.apply_(model[1], tr.Init("he"))
    whole = tr.apply_(model, tr.Init("lecun"), where="[12]*")
    with refused(StateError, "undo-order"):
        part.undo()
    whole.undo()
    part.undo()
    other.undo()


def test_a_pass_that_waits_for_its_backward_pass_is_not_disturbed():
    model = ChangesParametersInPlace()
    expected = ChangesParametersInPlace()
    expected.load_state_dict(model.state_dict())
    loss, same = model(X).square().sum(), expected(X).square().sum()
    tr.measure(model, X)
    loss.backward()
    same.backward()
    assert torch.equal(model.a.weight.grad, expected.a.weight.grad)


def test_nothing_is_copied_of_parameters_that_do_not_change(monkeypatch):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    cloned = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **options: cloned.append(self) or clone(self, **options))
    with observing(model):
        model(X)
        assert cloned == []
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].weight.zero_()
        assert len(cloned) == 1
    assert model[0].weight.abs().sum() > 0


def test_a_read_only_dictionary_that_was_changed_all_the_same_is_put_back():
    class Writes(Net):
        def change(self):
            dict.__setitem__(self.settings, "width", 7)

    model = Writes()
    tr.measure(model, X)
    assert model.settings == {"width": 6}


def test_an_error_within_leaves_no_trace():
    class Raises(FillsContainers):
        def change(self):
            super().change()
            raise ArgumentError("no", code="no")

    model = Raises()
    before = content(model)
    with refused(ArgumentError, "no"):
        tr.measure(model, X)
    assert content(model) == before
