"""Kinds of models as members of a stack, against the same models trained alone in a plain loop of PyTorch."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import trainability as tr
from trainability.errors import UnsupportedModelError
from trainability.introspect.hooks import tensors_in
from trainability.lbe.stacked import StackLBE
from trainability.stack import ways
from trainability.stack.inputs import inputs_of, map_inputs
from trainability.stack.memory import bytes_per_member
from trainability.stack.module import Stack

MEMBERS, BATCH, STEPS = 2, 6, 3


def numbers(*shape: int) -> Tensor:
    return torch.randn(MEMBERS, BATCH, *shape, dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(11, (MEMBERS, BATCH, *shape))


def padding() -> Tensor:
    return (torch.arange(5) >= torch.randint(2, 6, (MEMBERS, BATCH, 1))).expand(MEMBERS, BATCH, 5)


class Forward(nn.Module):
    """A model of some parts whose forward is a function of it and its inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.run(self, *args, **kwargs)


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    rnn = kind(4, 3, batch_first=True, **options)
    width = options.get("proj_size", 3) * (2 if rnn.bidirectional else 1)
    return Forward(lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=rnn, head=nn.Linear(width, 2))


def packed(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return m.head(m.rnn(rows)[1][0])


def attention_with_mask(m: Any, x: Tensor, padding: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~padding.unsqueeze(1))


def encoder(m: Any, input_ids: Tensor, padding: Tensor) -> Tensor:
    return m.head(m.layers(m.embedding(input_ids), src_key_padding_mask=padding)[:, 0])


def tied() -> nn.Module:
    model = Forward(lambda m, x: m.head(m.embedding(x)), embedding=nn.Embedding(11, 4), head=nn.Linear(4, 11))
    model.head.weight = model.embedding.weight
    return model


def counting(m: Any, x: Tensor) -> Tensor:
    m.seen = m.seen + 1
    m.mean = 0.5 * m.mean + 0.5 * x.mean().detach()
    return m.layer(x) * m.seen + m.mean


def caching(m: Any, x: Tensor) -> Tensor:
    if m.mask is None or len(m.mask) != x.shape[1]:
        m.mask = x.new_ones(x.shape[1], x.shape[1]).triu(1).bool()
    scores = m.layer(x) @ x.mT
    return scores.masked_fill(m.mask, -1e9).softmax(-1) @ x


def remembering(m: Any, x: Tensor) -> Tensor:
    m.history.append(m.layer(x).detach().mean())
    return m.layer(x) + torch.stack(m.history).sum()


def reassigning(m: Any, x: Tensor) -> Tensor:
    out = m.layer(x) * m.scale
    m.scale = 0.9 * m.scale + 0.1 * x.std().detach()
    m.steps = m.steps + 1
    return out


def branching(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if x.mean() > 0 else m.other(x).relu()


def writing(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 3, dtype=x.dtype)
    for column in range(3):
        out[:, column] = m.layer(x)[:, column] ** 2
    return out


def fourier() -> nn.Module:
    return Forward(
        lambda m, x: m.layer((x @ m.frequencies).sin()),
        layer=nn.Linear(4, 3),
        frequencies=torch.randn(4, 4, dtype=torch.float64),
    )


def closed_over() -> nn.Module:
    layer = nn.Linear(4, 3)
    return Forward(lambda m, x: layer(x), layer=layer)


def listed() -> nn.Module:
    model = Forward(lambda m, x: x @ m.all[0].T, layer=nn.Linear(4, 3))
    model.all = [model.layer.weight]
    return model


def with_buffers(**buffers: Tensor) -> Callable[[nn.Module], nn.Module]:
    def add(model: nn.Module) -> nn.Module:
        for name, buffer in buffers.items():
            model.register_buffer(name, buffer)
        return model

    return add


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return model


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    name: str = "answer"


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    way: str


def linear(forward: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Forward(forward, layer=nn.Linear(4, 3), **copy.deepcopy(parts))


CASES = {
    "lstm": Case(lambda: recurrent(nn.LSTM), lambda: numbers(5, 4), "loop"),
    "gru": Case(lambda: recurrent(nn.GRU, bidirectional=True), lambda: numbers(5, 4), "loop"),
    "rnn": Case(lambda: recurrent(nn.RNN, num_layers=2), lambda: numbers(5, 4), "loop"),
    "lstm with projections": Case(lambda: recurrent(nn.LSTM, proj_size=2), lambda: numbers(5, 4), "loop"),
    "lengths": Case(
        lambda: Forward(packed, rnn=nn.LSTM(4, 3, batch_first=True), head=nn.Linear(3, 2)),
        lambda: (numbers(5, 4), torch.randint(1, 6, (MEMBERS, BATCH))),
        "loop",
    ),
    "cell": Case(lambda: nn.GRUCell(4, 3), lambda: (numbers(4), numbers(3)), "loop"),
    "attention": Case(lambda: nn.MultiheadAttention(4, 2, batch_first=True), lambda: [numbers(5, 4)] * 3, "vmap"),
    "mask": Case(
        lambda: Forward(attention_with_mask, qkv=nn.Linear(4, 12)),
        lambda: {"x": numbers(5, 4), "padding": padding()},
        "vmap",
    ),
    "encoder": Case(
        lambda: Forward(
            encoder,
            embedding=nn.Embedding(11, 4),
            layers=nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
            head=nn.Linear(4, 2),
        ),
        lambda: {"input_ids": tokens(5), "padding": padding()},
        "loop",
    ),
    "encoder of layers": Case(
        lambda: Forward(
            encoder,
            embedding=nn.Embedding(11, 4),
            layers=nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 2),
            head=nn.Linear(4, 2),
        ),
        lambda: {"input_ids": tokens(5), "padding": padding()},
        "loop",
    ),
    "transformer": Case(
        lambda: nn.Transformer(4, 2, 1, 1, 8, 0.0, batch_first=True), lambda: (numbers(5, 4), numbers(3, 4)), "loop"
    ),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 3)), lambda: tokens(5), "vmap"
    ),
    "embedding with padding": Case(lambda: nn.Embedding(11, 4, padding_idx=0), lambda: tokens(5), "vmap"),
    "embedding by frequency": Case(
        lambda: nn.Embedding(11, 4, padding_idx=0, scale_grad_by_freq=True), lambda: tokens(5), "loop"
    ),
    "embedding of a norm": Case(lambda: nn.Embedding(11, 4, max_norm=0.5), lambda: tokens(5), "apart"),
    "sparse embedding": Case(lambda: nn.Embedding(11, 4, sparse=True), lambda: tokens(5), "loop"),
    "bags": Case(lambda: nn.EmbeddingBag(11, 4), lambda: tokens(5), "loop"),
    "bilinear": Case(lambda: nn.Bilinear(4, 2, 3), lambda: (numbers(4), numbers(2)), "loop"),
    "batchnorm": Case(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), lambda: numbers(4), "direct"),
    "instancenorm": Case(
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), lambda: numbers(3, 5), "vmap"
    ),
    "prelu": Case(lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()), lambda: numbers(4), "vmap"),
    "tied": Case(tied, lambda: tokens(5), "vmap"),
    "counter": Case(linear(counting, seen=0, mean=torch.zeros((), dtype=torch.float64)), lambda: numbers(4), "apart"),
    "counter tensor in place": Case(
        linear(lambda m, x: m.layer(x) * m.seen.add_(1), seen=torch.zeros(())), lambda: numbers(4), "apart"
    ),
    "cached mask": Case(lambda: Forward(caching, layer=nn.Linear(4, 4), mask=None), lambda: numbers(5, 4), "apart"),
    "list that grows": Case(linear(remembering, history=[]), lambda: numbers(4), "apart"),
    "buffers reassigned": Case(
        lambda: with_buffers(scale=torch.ones((), dtype=torch.float64), steps=torch.tensor(0))(linear(reassigning)()),
        lambda: numbers(4),
        "apart",
    ),
    "buffers of integers": Case(
        lambda: with_buffers(index=torch.tensor([2, 0, 1]))(linear(lambda m, x: m.layer(x)[:, m.index])()),
        lambda: numbers(4),
        "vmap",
    ),
    "branch on the data": Case(
        lambda: Forward(branching, layer=nn.Linear(4, 3), other=nn.Linear(4, 3)), lambda: numbers(4), "loop"
    ),
    "item": Case(linear(lambda m, x: m.layer(x) * x.abs().max().item()), lambda: numbers(4), "loop"),
    "writes in place": Case(linear(writing), lambda: numbers(4), "loop"),
    "input in place": Case(linear(lambda m, x: m.layer(x.mul_(2).sub_(x.mean()))), lambda: numbers(4), "vmap"),
    "nonzero": Case(linear(lambda m, x: m.layer(x)[(x > 0).nonzero()[:3, 0]]), lambda: numbers(4), "loop"),
    "plain tensors": Case(fourier, lambda: numbers(4), "apart"),
    "closed over": Case(closed_over, lambda: numbers(4), "apart"),
    "weights in a list": Case(listed, lambda: numbers(4), "apart"),
    "weight norm": Case(lambda: parametrizations.weight_norm(nn.Linear(4, 3)), lambda: numbers(4), "loop"),
    "spectral norm": Case(lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), lambda: numbers(4), "loop"),
    "spectral norm of old": Case(lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), lambda: numbers(4), "apart"),
    "orthogonal": Case(lambda: parametrizations.orthogonal(nn.Linear(4, 4)), lambda: numbers(4), "vmap"),
    "frozen": Case(frozen, lambda: numbers(4), "direct"),
    "dictionary": Case(
        linear(lambda m, x: {"logits": m.layer(x), "hidden": (x,), "n": 3, "none": None}), lambda: numbers(4), "direct"
    ),
    "dataclass": Case(linear(lambda m, x: Answer(m.layer(x), (x.tanh(), x.argmax(-1)))), lambda: numbers(4), "direct"),
    "complex within": Case(
        lambda: Forward(lambda m, x: m.layer(x.cdouble()).abs(), layer=nn.Linear(4, 3, dtype=torch.cdouble)),
        lambda: numbers(4),
        "direct",
    ),
    "loss": Case(linear(lambda m, x: m.layer(x).square().mean()), lambda: numbers(4), "vmap"),
    "checkpoint": Case(
        linear(lambda m, x: torch.utils.checkpoint.checkpoint(m.layer, x.requires_grad_(), use_reentrant=True)),
        lambda: numbers(4),
        "apart",
    ),
    "checkpoint without reentry": Case(
        linear(lambda m, x: torch.utils.checkpoint.checkpoint(m.layer, x, use_reentrant=False)),
        lambda: numbers(4),
        "apart",
    ),
    "own function": Case(linear(lambda m, x: _Double.apply(m.layer(x))), lambda: numbers(4), "loop"),
    "convolution": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: numbers(2, 5, 5),
        "vmap",
    ),
}


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def loss_of(outputs: Any) -> Tensor:
    return sum(t.sin().mean() for t in tensors_in(outputs) if t.is_floating_point())


def run(model: nn.Module, inputs: Any) -> Any:
    own = map_inputs(Tensor.clone, inputs)
    if isinstance(own, dict):
        return model(**own)
    return model(*own) if isinstance(own, tuple) else model(own)


def trained(model: nn.Module, batches: list[Any]) -> list[float]:
    """The loop that somebody would write by hand."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for batch in batches:
        loss = loss_of(run(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def member(outputs: Any, number: int) -> Any:
    return [t[number] for t in tensors_in(outputs)]


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", CASES)
def test_members_agree_with_the_same_models_trained_alone(case):
    build, make, way = CASES[case]
    torch.manual_seed(0)
    alone = [build().double() for _ in range(MEMBERS)]
    torch.manual_seed(0)
    models, batches = [build().double() for _ in range(MEMBERS)], [make() for _ in range(STEPS)]
    expected = [trained(m, [inputs_of(b, MEMBERS)[e] for b in batches]) for e, m in enumerate(alone)]

    stack = Stack(models)
    ways.prepare(stack, map_inputs(Tensor.clone, batches[0]))
    assert ("apart" if stack.apart else stack.way) == way
    if not case.startswith("checkpoint"):  # which takes no torch.autograd.grad
        with ways.rehearsing(stack, map_inputs(Tensor.clone, batches[0])) as work:
            work()  # and leaves no trace
    optimizer = torch.optim.SGD([p for p in stack.module.parameters() if p.requires_grad], lr=0.1)
    found = []
    for batch in batches:
        outputs = stack(map_inputs(Tensor.clone, batch)).outputs
        losses = [loss_of(member(outputs, e)) for e in range(MEMBERS)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        found.append([float(loss.detach()) for loss in losses])
    for own, theirs in zip(zip(*found, strict=True), expected, strict=True):
        assert own == pytest.approx(theirs, rel=1e-6)
        assert all(map(math.isfinite, own))
    for number, (own, theirs) in enumerate(zip(models, alone, strict=True)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(stack.module.state_dict()[name][number], own.state_dict()[name])
    shared = inputs_of(batches[-1], MEMBERS)[0]
    predicted = stack.predict(map_inputs(Tensor.clone, shared))
    for number, theirs in enumerate(alone):
        with torch.no_grad():
            own = run(theirs.eval(), shared)
        for a, b in zip(member(predicted, number), tensors_in(own), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_transformer_of_another_library(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    inputs = {
        "input_ids": tokens(5),
        "attention_mask": (~padding()).long(),
        "labels": torch.randint(2, (MEMBERS, BATCH)),
    }
    models = [transformers.BertForSequenceClassification(config).double() for _ in range(MEMBERS)]
    alone = copy.deepcopy(models)
    stack = Stack(models)
    ways.prepare(stack, inputs)
    assert (stack.way, stack.apart) == ("loop", False)
    for _ in range(STEPS):
        optimizer = torch.optim.SGD(stack.module.parameters(), lr=0.1)
        outputs = stack(inputs).outputs
        optimizer.zero_grad()
        outputs.loss.sum().backward()
        optimizer.step()
        for number, model in enumerate(alone):
            own = torch.optim.SGD(model.parameters(), lr=0.1)
            expected = model(**inputs_of(inputs, MEMBERS)[number])
            own.zero_grad()
            expected.loss.backward()
            own.step()
            assert float(outputs.loss[number].detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-6)


def drawing(m: Any, x: Tensor) -> Tensor:
    m.passes += 1
    return m.layer(F.dropout(m.drop(x), 0.5, m.training))


def test_members_that_are_apart_draw_from_seeds_of_their_own():
    models = [linear(drawing, passes=0, drop=nn.Dropout(0.3))() for _ in range(MEMBERS)]
    stack, x = Stack(models), numbers(4).float()
    ways.prepare(stack, x)
    assert stack.apart
    assert not stack.recordable
    stack.seed([torch.Generator() for _ in models], [5, 6])
    outputs = stack(x).outputs
    for number, model in enumerate(models):
        torch.manual_seed(5 + number)
        torch.testing.assert_close(outputs[number], model(x[number]))
        assert model.passes == 2


def test_members_that_are_apart_are_read_by_lbe():
    def build() -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            m.passes += 1
            return m.last(m.relu(m.layer(x)))

        return Forward(forward, layer=nn.Linear(4, 3), relu=nn.ReLU(), last=nn.Linear(3, 2), passes=0).double()

    models, x = [build() for _ in range(MEMBERS)], numbers(4)
    alone = [copy.deepcopy(model) for model in models]
    stack = Stack(models, taps=["relu"])
    ways.prepare(stack, x)
    assert stack.apart
    twin = copy.deepcopy(stack)
    for own in (stack, twin):
        term = StackLBE(["relu"], [0.5, 0.9], [0.2, 0.4], [0.2, 0.1], like=models[0].layer.weight)
        outputs, readings = own(x)
        term(outputs.square().mean((1, 2)), readings).sum().backward()
        for e, (alpha, beta, floor) in enumerate(((0.5, 0.2, 0.2), (0.9, 0.4, 0.1))):
            model = copy.deepcopy(alone[e])
            lbe = tr.LBE(model, alpha=alpha, beta=beta, alpha_min=floor)
            lbe(model(x[e]).square().mean()).backward()
            torch.testing.assert_close(own.module.layer.weight.grad[e], model.layer.weight.grad)
            torch.testing.assert_close(term.alpha.grad[e], lbe.alpha.grad)
        own.remove()
        assert not any(model.relu._forward_hooks for model in own.models)


def test_a_dropout_that_drops_nothing_or_all_draws_nothing():
    def build(p: float) -> nn.Module:
        return nn.Sequential(nn.Dropout(p), nn.Linear(4, 4), nn.Dropout(0.5))

    for probabilities in ((0.0, 0.0), (0.0, 0.5), (1.0, 0.3)):
        models = [build(p) for p in probabilities]
        stack, x = Stack(models), numbers(4).float()
        for way in ("vmap", "loop"):
            stack.way, stack.turn.by_functions = way, False
            stack.seed([torch.Generator().manual_seed(seed) for seed in (5, 6)], [5, 6])
            outputs = stack(x).outputs
            for number, model in enumerate(models):
                torch.manual_seed(5 + number)
                torch.testing.assert_close(outputs[number], model(x[number]))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda _m, _i, out: 2 * out)
    model[1].register_forward_pre_hook(lambda _m, inputs: (inputs[0] + 1,))
    model[1].register_full_backward_hook(lambda _m, grad, _out: (2 * grad[0],))
    return model


def generator() -> nn.Module:
    drawn = (torch.full((3,), float(number)) for number in range(99))
    return Forward(lambda m, x: m.layer(x) + 0 * next(m.drawn), layer=nn.Linear(4, 3), drawn=drawn)


ANY = {
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))),
    "traced": lambda: torch.jit.trace(nn.Linear(4, 3), torch.randn(6, 4)),
    "part of it scripted": lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 3)),
    "hooks": hooked,
    "cannot be copied": generator,
    "compiled": lambda: torch.compile(nn.Linear(4, 3), backend="eager"),
    "nothing trained": nn.Tanh,
    "traced by fx": lambda: torch.fx.symbolic_trace(nn.Linear(4, 3)),
    "of halves": lambda: Forward(lambda m, x: m.layer(x.bfloat16()), layer=nn.Linear(4, 3).bfloat16()),
    "complex": lambda: Forward(lambda m, x: m.layer(x.cfloat()).abs(), layer=nn.Linear(4, 3, dtype=torch.cfloat)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("case", ANY)
def test_a_stack_of_one_runs_what_torch_runs(case):
    torch.manual_seed(0)
    twin = ANY[case]()
    torch.manual_seed(0)
    model = ANY[case]()
    stack, x = Stack([model]), torch.randn(1, 6, 4)
    assert bytes_per_member(model, x[0]) > 0
    ways.prepare(stack, x)
    assert ways.choose(stack, x) == {}
    outputs, expected = stack(x).outputs[0], twin(x[0])
    torch.testing.assert_close(outputs, expected)
    if expected.requires_grad:
        outputs.float().square().sum().backward()
        expected.float().square().sum().backward()
    for own, theirs in zip(stack.module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad)
    torch.testing.assert_close(stack.predict(x[0])[0], twin.eval()(x[0]))


def unequal() -> nn.Module:
    return Forward(lambda m, x: m.layer(x)[x[:, 0] > 0], layer=nn.Linear(4, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    ("build", "members", "code"),
    [
        (lambda: nn.LazyLinear(3), 1, "lazy"),
        (lambda: nn.LazyLinear(3), 2, "lazy"),
        (ANY["scripted"], 2, "scripted"),
        (ANY["cannot be copied"], 2, "not-copyable"),
        (ANY["traced by fx"], 2, "not-alike"),
        (unequal, 2, "outputs-differ"),
        (lambda: Forward(lambda m, x: 3), 2, "outputs-not-a-tensor"),
    ],
)
def test_models_that_are_refused(build, members, code):
    with pytest.raises(UnsupportedModelError) as caught:
        ways.prepare(Stack([build() for _ in range(members)]), numbers(4).float()[:members])
    assert caught.value.code == code


def test_members_that_are_apart_run_in_no_other_way():
    stack = Stack([linear(drawing, passes=0, drop=nn.Dropout(0.3))() for _ in range(MEMBERS)])
    ways.prepare(stack, numbers(4).float())
    with pytest.raises(UnsupportedModelError) as caught:
        stack.way = "vmap"
    assert caught.value.code == "not-stackable"


def test_networks_that_explode_at_once_run_as_others_do():
    stack = Stack([nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(MEMBERS)])
    with torch.no_grad():
        stack.module[0].weight[1] *= 1e38
        stack.module[2].weight[1] *= 1e38
    ways.prepare(stack, numbers(4).float())
    assert stack.way == "direct"
