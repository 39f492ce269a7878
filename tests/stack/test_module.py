"""A stack against its members trained alone, in a plain loop with torch's own modules and optimizers."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import trainability as tr
from stacks import MEMBERS, network, plain, training
from trainability.data import load
from trainability.data.seeding import stream
from trainability.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from trainability.lbe.stacked import StackLBE
from trainability.stack import ways
from trainability.stack.memory import bytes_per_member, members_that_fit
from trainability.stack.module import Stack
from trainability.tasks import task
from trainability.training.batches import batches_of
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.schedules import Schedule
from trainability.training.trainer import Training


def alone(kind: str, number: int, steps: int, dtype: torch.dtype, optimizer: str) -> nn.Module:
    """The loop that somebody would write by hand."""
    member, data = MEMBERS[number], load("digits")
    model = network(kind, number).to(dtype)
    lbe = (
        tr.LBE(model, alpha=member.lbe.alpha, beta=member.lbe.beta, alpha_min=member.lbe.alpha_min)
        if member.lbe
        else None
    )
    groups = [{"params": list(model.parameters())}]
    groups += [{"params": list(lbe.parameters()), "weight_decay": 0.0}] if lbe else []
    if optimizer == "adamw":
        optim = torch.optim.AdamW(groups, lr=member.lr, weight_decay=member.weight_decay)
    else:
        optim = torch.optim.SGD(groups, lr=member.lr, weight_decay=member.weight_decay, momentum=0.9, nesterov=True)
    batches = batches_of(data, [member.seed], 64)
    for step in range(steps):
        x, y = (t[0] for t in batches(step))
        x = x.to(dtype)
        torch.manual_seed(stream(member.seed, "dropout", 0, step))
        loss = nn.functional.cross_entropy(model(x), y)
        optim.zero_grad()
        (lbe(loss) if lbe else loss).backward()
        optim.step()
    return model


@pytest.mark.parametrize(
    ("kind", "members"), [("fnn", "direct"), ("fnn", "vmap"), ("fnn", "loop"), ("conv", "vmap"), ("conv", "loop")]
)
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-10)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_members_agree_with_the_same_networks_trained_alone(kind, members, precision, tolerance, optimizer):
    options = {"options": {"momentum": 0.9, "nesterov": True}} if optimizer == "sgd" else {}
    together = training(
        [network(kind, e) for e in range(3)], MEMBERS, precision, optimizer=optimizer, members=members, **options
    )
    together.prepare()
    assert together.stack.way == members
    for _ in range(20):
        together.step()
    dtype = torch.float64 if precision == "64-true" else torch.float32
    for number in range(3):
        expected = alone(kind, number, 20, dtype, optimizer)
        found = together.stack.models[number]
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=tolerance, atol=tolerance)


def test_a_stack_of_one_is_its_model_trained_alone():
    single = training([network("fnn", 1)], MEMBERS[1:2], "64-true")
    single.prepare()
    for _ in range(20):
        single.step()
    expected = alone("fnn", 1, 20, torch.float64, "adamw")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(single.stack.models[0].state_dict()[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("members", ["vmap", "loop", "direct", "direct, one optimizer"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_member_that_diverges_is_frozen_and_the_others_do_not_notice(members, optimizer):
    members, _, alike = members.partition(", ")
    who = [Member(e, 1e-2, lbe=Strength()) for e in range(3)] if alike else MEMBERS

    def run(poisoned: bool) -> Training:
        models = [network("fnn", e) for e in range(3)]
        options = {"momentum": 0.9} if optimizer == "sgd" else {}
        together = training(
            models,
            who,
            members=members,
            epochs=1,
            optimizer=optimizer,
            options=options,
            schedule=Schedule("cosine", warmup=0.2),
        )
        assert together.updates.sizes == ([3] if alike else [1, 1, 1])
        together.prepare()
        for step in range(12):
            if poisoned and step == 5:
                with torch.no_grad():
                    together.stack.module[1].weight[1] = float("inf")
            together.advance()
        return together

    healthy, ill = run(False), run(True)
    assert ill.alive == [True, False, True]
    assert [r.status for r in ill.histories] == ["training", "diverged", "training"]
    assert ill.histories[1].steps == 5
    for number in (0, 2):
        for a, b in zip(
            healthy.stack.models[number].state_dict().values(),
            ill.stack.models[number].state_dict().values(),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_a_frozen_member_keeps_the_weights_it_had():
    together = training([network("fnn", e) for e in range(3)], MEMBERS)
    together.prepare()
    together.advance()
    with torch.no_grad():
        together.stack.module[1].bias[0, 0] = float("nan")
    before = {n: p.clone() for n, p in together.stack.models[0].named_parameters()}
    for _ in range(3):
        together.advance()
    for name, parameter in together.stack.models[0].named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


def test_what_is_trained_in_the_stack_is_trained_in_the_models():
    models = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    stack = Stack(models)
    with torch.no_grad():
        stack.module[0].weight.add_(1)
        stack.module[1].running_mean.fill_(7)
    assert torch.equal(models[1][0].weight, stack.module[0].weight[1])
    assert models[0][1].running_mean.tolist() == [7, 7, 7]
    stack.double()
    assert models[1][0].weight.dtype == torch.float64
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    stack.module.eval()
    for model, one, out in zip(models, x, stack(x).outputs, strict=True):
        torch.testing.assert_close(model.eval()(one), out)


def test_shared_modules_stay_shared():
    def tied() -> nn.Sequential:
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    models = [tied() for _ in range(2)]
    stack = Stack(models)
    assert stack.module[0].weight is stack.module[2].weight
    x = torch.randn(2, 5, 4)
    for model, one, out in zip(models, x, stack(x).outputs, strict=True):
        torch.testing.assert_close(model(one), out)


def test_an_activation_that_is_overwritten_later_is_read_as_it_was():
    models = [nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) for _ in range(2)]
    stack = Stack(models, taps=["0"])
    x = torch.randn(2, 6, 4)
    ways.prepare(stack, x)
    passed = stack(x)
    (read,) = passed.readings
    torch.testing.assert_close(read.mean[1, 0], models[1][0](x[1]).mean(0))
    (passed.outputs.sum() + read.variance.sum()).backward()  # what the backward pass needs was not overwritten


@pytest.mark.parametrize(
    ("models", "path", "code"),
    [
        (lambda: [nn.Linear(4, 3), nn.Linear(4, 5)], "", "not-alike"),
        (lambda: [nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())], "0", "not-alike"),
        (lambda: [nn.Sequential(nn.ELU(0.5)), nn.Sequential(nn.ELU(1.0))], "0", "not-alike"),
        (lambda: [nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)], "", "not-alike"),
    ],
)
def test_models_that_are_no_stack_are_refused_by_name(models, path, code):
    with pytest.raises(UnsupportedModelError) as caught:
        Stack(models())
    assert (caught.value.path, caught.value.code) == (path, code)


def test_a_stack_is_of_several_models_each_its_own():
    for models, code in (([nn.Linear(2, 2)] * 2, "duplicate"), ([], "empty")):
        with pytest.raises(ArgumentError) as caught:
            Stack(models)
        assert caught.value.code == code


def test_a_copy_of_a_stack_is_one():
    stack = Stack([nn.Linear(3, 2) for _ in range(2)])
    twin = copy.deepcopy(stack)
    with torch.no_grad():
        twin.module.weight.fill_(7)
    assert bool((twin.models[1].weight == 7).all())
    assert not bool((stack.models[1].weight == 7).any())
    with pytest.raises(ArgumentTypeError) as caught:
        pickle.dumps(stack)
    assert caught.value.code == "not-picklable"


def colored() -> nn.Sequential:
    conv = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(256, 10))


@pytest.mark.parametrize(
    ("members", "seconds", "chosen"),
    [
        (2, [3.0, 2.0, 1.0], ("loop", True)),
        (2, [1.0, 2.0, 3.0], ("vmap", False)),
        (2, [3.0, 2.0, 1.95], ("loop", False)),  # too little for another rounding
        (1, [2.0, 1.0], ("alone", True)),
        (1, [1.0, 2.0], ("alone", False)),
    ],
)
def test_convolutions_run_the_way_that_was_faster(members, seconds, chosen):
    stack = Stack([colored() for _ in range(members)])
    left = iter(seconds)

    def timer(work) -> float:
        work()
        return next(left)

    found = ways.choose(stack, torch.randn(members, 8, 3, 8, 8), timer)
    assert list(found) == (
        ["vmap", "loop", "loop, channels last"] if members > 1 else ["alone", "alone, channels last"]
    )
    assert list(found.values()) == seconds
    assert (stack.way, stack.channels_last) == chosen


@pytest.mark.parametrize("members", [1, 3])
def test_maps_with_their_channels_last_give_the_same_networks(members):
    models = [colored().double() for _ in range(members)]
    twins = copy.deepcopy(models)
    stack = Stack(models)
    stack.way = "alone" if members == 1 else "loop"
    stack.channels_last = True
    layouts = []
    stack.module[2].register_forward_hook(lambda _m, _i, out: layouts.append(out.stride(1)))
    x = torch.randn(members, 6, 3, 8, 8, dtype=torch.float64)
    outputs = stack(x).outputs
    outputs.sin().sum().backward()
    assert set(layouts) == {1}
    for number, twin in enumerate(twins):
        expected = twin(x[number])
        expected.sin().sum().backward()
        torch.testing.assert_close(outputs[number], expected)
        for name, theirs in twin.named_parameters():
            own = dict(stack.module.named_parameters())[name]
            assert own.is_contiguous()
            torch.testing.assert_close(own.grad if members == 1 else own.grad[number], theirs.grad)
    for twin, found in zip(twins, stack.predict(x[0]), strict=True):
        torch.testing.assert_close(found, twin.eval()(x[0]))


def test_a_view_that_other_strides_do_not_have_keeps_maps_as_they_are():
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(144, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.conv(x).view(len(x), -1))

    stack = Stack([Viewing()])
    assert set(ways.choose(stack, torch.randn(1, 6, 3, 8, 8))) == {"alone"}
    assert not stack.channels_last


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
def test_schedules(kind):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = Schedule(kind, milestones=(1, 2), gamma=0.1, warmup=1.0).of(optimizer, 3, 4)
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    expected = {
        "constant": [1.0] * 12,
        "step": [1.0] * 4 + [0.1] * 4 + [0.01] * 4,
        "cosine": [0.25, 0.5, 0.75, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)],
    }
    assert found == pytest.approx(expected[kind])


@pytest.mark.parametrize(
    ("compiled", "rates", "sizes"),
    [
        ("off", [3e-3, 3e-3, 3e-3], [3]),
        ("on", [3e-3, 3e-3, 3e-3], [3]),
        ("off", [1e-3, 3e-3, 3e-3], [1, 2]),
        ("off", [3e-3, 1e-3, 3e-3], [1, 1, 1]),
    ],
)
def test_neighbors_that_share_an_optimizer_agree_with_networks_trained_alone(compiled, rates, sizes):
    who = [Member(e, rates[e], 0.05, Strength(0.6, 0.3, 0.1)) for e in range(3)]
    together = training([plain(e) for e in range(3)], who, "64-true", compile=compiled)
    together.prepare()
    assert together.stack.way == "direct"
    assert together.updates.sizes == sizes
    for _ in range(20):
        together.step()
    for number, member in enumerate(who):
        model = plain(number).double()
        lbe = tr.LBE(model, alpha=0.6, beta=0.3, alpha_min=0.1)
        optimizer = torch.optim.AdamW(lbe.parameter_groups(model, lr=rates[number], weight_decay=0.05))
        batches = batches_of(load("digits"), [member.seed], 64)
        for step in range(20):
            x, y = (t[0] for t in batches(step))
            optimizer.zero_grad()
            lbe(nn.functional.cross_entropy(model(x.double()), y)).backward()
            optimizer.step()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(together.stack.models[number].state_dict()[name], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(together.lbe.alpha[number], lbe.alpha, rtol=1e-10, atol=1e-10)


def test_a_forward_that_counts_dimensions_is_not_run_directly():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) - x.mean(0)

    stack = Stack([Counting() for _ in range(3)])
    x = torch.randn(3, 6, 4)
    ways.prepare(stack, x)
    assert stack.way == "vmap"
    for model, one, out in zip(stack.models, x, stack(x).outputs, strict=True):
        torch.testing.assert_close(model(one), out)


def test_reused_layers_and_channels_are_read_as_by_lbe_alone():
    def model() -> nn.Sequential:
        relu = nn.ReLU()
        return nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(64, 10))

    models = [model().double() for _ in range(2)]
    x, y = torch.randn(2, 16, 1, 8, 8, dtype=torch.float64), torch.randint(10, (2, 16))
    for neurons in ("position", "channel"):
        stack = Stack(models, taps=["1"], neurons=neurons)
        term = StackLBE(["1"], [0.5, 0.9], [0.2, 0.4], [0.2, 0.1], like=next(models[0].parameters()))
        ways.prepare(stack, x)
        outputs, readings = stack(x)
        losses = task("classification").losses(outputs, y)
        totals = term(losses, readings)
        totals.sum().backward()
        for e, (alpha, beta, floor) in enumerate(((0.5, 0.2, 0.2), (0.9, 0.4, 0.1))):
            alone = model().double()
            alone.load_state_dict(models[e].state_dict())
            lbe = tr.LBE(alone, alpha=alpha, beta=beta, alpha_min=floor, neurons=neurons)
            total = lbe(nn.functional.cross_entropy(alone(x[e]), y[e]))
            total.backward()
            torch.testing.assert_close(totals[e], total)
            torch.testing.assert_close(term.alpha.grad[e], lbe.alpha.grad)
            torch.testing.assert_close(stack.module[0].weight.grad[e], alone[0].weight.grad)
        stack.remove()


def test_a_stack_of_one_leaves_no_hooks_behind():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    stack = Stack([model], taps=["1"])
    stack.remove()
    assert not model[1]._forward_hooks
    assert not model._forward_pre_hooks


def test_how_many_members_fit():
    model = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU())
    x = torch.randn(64, 100)
    weights = 4 * sum(p.numel() for p in model.parameters())
    kept = 4 * 64 * (100 + 1000 + 1000)  # the input and both activations
    assert bytes_per_member(model, x) == pytest.approx(3.3 * (4 * weights + kept), rel=0.05)
    assert members_that_fit(10**9, torch.device("cpu")) < 10**3


def test_what_does_not_fit_together_is_said_in_a_sentence():
    stack = Stack([plain(e) for e in range(3)])
    with pytest.raises(ArgumentError) as caught:
        stack(torch.randn(2, 8, 64))
    assert caught.value.code == "input-shape"
    with pytest.raises(ArgumentError) as caught:
        training([plain(0), plain(1)], [Member(0)])
    assert caught.value.code == "counts-differ"
    with pytest.raises(ArgumentError) as caught:
        training([plain(0)], [Member(0)], cuda_graph="on")
    assert caught.value.code == "needs-cuda"
    for wrong, code in (
        (lambda: TrainingConfig(0, 64), "out-of-range"),
        (lambda: TrainingConfig(1, 64, compile="yes"), "unknown-choice"),
        (lambda: Schedule("cosin"), "unknown-choice"),
    ):
        with pytest.raises(ArgumentError) as caught:
            wrong()
        assert caught.value.code == code


def test_a_network_with_convolutions_that_cannot_be_mapped_runs_one_after_another():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.last = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(144, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(nn.functional.dropout(self.relu(self.conv(x)), 0.2, self.training).flatten(1))

    together = training([Dropping() for _ in range(3)], [Member(e) for e in range(3)], members="auto")
    together.prepare()
    assert together.stack.way == "loop"
