"""Reading graphs off models, and predicting q and c through them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from trainability.errors import UnsupportedModelError
from trainability.models import cnn, fnn, resnet
from trainability.signal import DKSTarget, TATTarget, chain, measured, predict, read, solve


def kinds(model, x):
    return [(node.kind, node.path) for node in read(model, x).nodes]


class Block(nn.Module):
    """Activations as functions and in place, a sum in place."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        y = F.relu(self.first(x), inplace=True)
        y = self.second(y)
        y += x
        return y.relu_()


class Wrapped(nn.Module):
    """A forward of its own around some modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.inner = nn.ModuleList(modules)
        self.function = function

    def forward(self, x):
        return self.function(self.inner, x)


def test_functions_sums_and_what_works_in_place():
    graph = read(nn.Sequential(nn.Linear(4, 4), Block(4)), torch.randn(2, 4))
    assert [(n.kind, n.path, n.inputs) for n in graph.nodes] == [
        ("input", "", ()),
        ("affine", "0", (0,)),
        ("affine", "1.first", (1,)),
        ("nonlinear", "1", (2,)),
        ("affine", "1.second", (3,)),
        ("sum", "1", (4, 1)),
        ("nonlinear", "1", (5,)),
        ("output", "", (6,)),
    ]
    assert graph.nodes[5].weights == (1.0, 1.0)


@pytest.mark.parametrize(
    ("function", "like"),
    [
        (lambda z: z * torch.sigmoid(z), F.silu),
        (lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), F.gelu),
        (lambda z: z * (z + 3).clamp(0, 6) / 6, F.hardswish),
        (lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: F.leaky_relu(z, 0.1)),
        (lambda z: torch.log1p(torch.exp(z)), F.softplus),
    ],
)
def test_an_activation_written_out_is_one_activation(function, like):
    model = Wrapped(lambda m, x: m[1](function(m[0](x))), nn.Linear(3, 4), nn.Linear(4, 2))
    (node,) = read(model, torch.randn(2, 3)).nonlinear
    z = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert torch.allclose(node.activation.function(z), like(z))


def test_known_activations_keep_their_closed_forms():
    graph = read(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2), nn.Linear(2, 2), nn.ReLU()), torch.randn(2, 2))
    assert [node.activation.leaky for node in graph.nonlinear] == [(0.2, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize(("depth", "slope"), [(50, 0.4259072), (101, 0.5704395), (152, 0.6386479)])
def test_the_authors_slopes_come_out_of_their_resnets(depth, slope):
    with torch.device("meta"):
        model = resnet(depth, 1000, family="imagenet", shortcuts=False, norm=False)
        x = torch.zeros(2, 3, 64, 64)
    assert solve("relu", TATTarget(eta=0.9), read(model, x)).constants["negative_slope"] == pytest.approx(
        slope, abs=1e-7
    )


@pytest.mark.parametrize(("depth", "slope"), [(15, 0.0806), (50, 0.4305), (200, 0.6796)])
def test_chains_of_modules_are_chains(depth, slope):
    graph = read(fnn(4, depth, 4, 2), torch.randn(2, 4))
    assert graph.depth == depth
    assert solve("relu", TATTarget(eta=0.9), graph).constants["negative_slope"] == pytest.approx(slope, abs=5e-5)
    assert solve("relu", DKSTarget(), graph).constants == solve("relu", DKSTarget(), chain(depth)).constants


# Constants of the unit tests of google-deepmind/dks: a ResNet-101 of version 2 with shortcuts of weight 0.6.
@pytest.mark.parametrize(
    ("nonlinearity", "remedy", "constants"),
    [
        ("relu", tr.TAT(eta=0.75, shortcut=0.6), "negative_slope=0.62918, output_scale=1.197"),
        (
            "softplus",
            tr.DKS(zeta=1.2, shortcut=0.6),
            "input_scale=0.18761, input_shift=0.406881, output_shift=-0.921347, output_scale=8.87867",
        ),
        (
            "tanh",
            tr.DKS(zeta=1.2, shortcut=0.6),
            "input_scale=0.0746107, input_shift=0.556692, output_shift=-0.503438, output_scale=18.0026",
        ),
        (
            "softplus",
            tr.TAT(tau=0.2, shortcut=0.6),
            "input_scale=0.150115, input_shift=0.53746, output_shift=-0.996481, output_scale=10.5488",
        ),
    ],
)
def test_published_constants_of_a_residual_network(nonlinearity, remedy, constants):
    with torch.device("meta"):
        model = resnet(101, 10, family="imagenet", norm=False, preactivation=True, nonlinearity=nonlinearity)
        report = tr.apply_(model, remedy, inputs=torch.zeros(2, 3, 64, 64), dry_run=True)
    after = next(change.after for change in report.changes if change.path == "stage1.1.branch.1_" + nonlinearity)
    assert after == f"ShapedActivation({nonlinearity}, {constants})"


def test_concatenation_and_branches():
    def dense(m, x):
        a = m[0](x).tanh()
        b = m[1](torch.cat([x, a], 1)).tanh()
        return m[2](torch.cat([x, a, b], 1))

    graph = read(Wrapped(dense, nn.Linear(4, 6), nn.Linear(10, 2), nn.Linear(12, 2)), torch.randn(2, 4))
    assert [n.weights for n in graph.nodes if n.kind == "concat"] == [(0.4, 0.6), (4 / 12, 6 / 12, 2 / 12)]


def test_scales_shifts_normalization_and_pooling():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.norm = nn.GroupNorm(2, 4)
            self.gamma = nn.Parameter(torch.full((4, 1, 1), 0.5))
            self.place = nn.Parameter(torch.full((4, 1, 1), 0.3))

        def forward(self, x):
            y = self.norm(self.conv(x)) * self.gamma + self.place
            return F.adaptive_avg_pool2d(y / 2, 1).flatten(1)

    nodes = read(Scaled(), torch.randn(2, 2, 8, 8)).nodes
    assert [n.kind for n in nodes] == [
        *("input", "affine", "normalize", "scale", "shift", "scale", "pass", "pass", "output"),
    ]
    assert nodes[3].weights == pytest.approx((0.5,))
    assert nodes[4].weights == pytest.approx((0.09, 0.3))
    assert nodes[5].weights == pytest.approx((0.5,))


def _gate(m, x):
    return m[0](x) * torch.sigmoid(m[1](x))


def _attention(m, x):
    q, k = m[0](x), m[1](x)
    return (q @ k.mT) @ x


def _shared(m, x):
    return m[0](m[0](x).relu())


def _decides(m, x):
    return m[0](x) if m[0](x).sum() > 0 else -m[0](x)


def _along_the_batch(m, x):
    return torch.cat([m[0](x), m[0](x)], 0)


def _sorted(m, x):
    return m[0](x).sort(1)[0]


def _learned(m, x):
    return F.prelu(m[0](x), m[0].bias)


@pytest.mark.parametrize(
    ("function", "path", "code"),
    [
        (_gate, "1", "gate"),
        (_attention, "1", "product-of-activations"),
        (_shared, "1.inner.0", "weights-shared"),
        (_decides, "1", "dynamic-control-flow"),
        (_along_the_batch, "1.inner.0", "weights-shared"),
        (_sorted, "1", "over-features"),
        (_learned, "1", "learned-activation"),
        (lambda m, x: m[0](x).softmax(1), "1", "attention"),
        (lambda m, x: x.new_zeros(3), "", "no-network"),
        (lambda m, x: torch.cat([m[0](x), m[1](x)], 0), "1", "concatenation"),
        (lambda m, x: m[0](x) + torch.rand_like(x), "1", "random"),
        (lambda m, x: torch.stack([m[0](x), m[1](x)]).amax(0), "1", "no-rule"),
        (lambda m, x: m[0](x).long() + m[1](x), "1", "no-rule"),
    ],
)
def test_what_the_theory_has_no_rule_for_is_refused_by_name(function, path, code):
    model = nn.Sequential(nn.Linear(4, 4), Wrapped(function, nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(UnsupportedModelError) as caught:
        read(model, torch.randn(3, 4))
    assert (caught.value.code, caught.value.path) == (code, path)


def _gate_of_parts(m, x):
    a, b = m[0](x).chunk(2, -1)
    return m[1](torch.cat([a * torch.sigmoid(b), a], 1))


def _maxout(m, x):
    a, b = m[0](x).split(2, 1)
    return torch.maximum(a, b)


def _view_in_place(m, x):
    h = m[0](x)
    h.view(-1, 2, 2).relu_()
    return m[1](h)


def _part_in_place(m, x):
    h = m[0](x)
    h[:, :2].relu_()
    return m[1](h)


def _tied(m, x):
    return F.linear(torch.tanh(m[0](x)), m[0].weight.t())


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (_gate_of_parts, "gate"),
        (_maxout, "no-rule"),
        (_view_in_place, "changed-in-place"),
        (_part_in_place, "changed-in-place"),
        (_tied, "weights-shared"),
        (lambda m, x: m[0](x).mean(1, keepdim=True).expand(-1, 4), "over-features"),
        (lambda m, x: F.pad(m[0](x), (0, 2)), "over-features"),
        (lambda m, x: torch.full((4, 4), 0.25) @ m[0](x), "fixed-matrix"),
    ],
)
def test_what_could_be_taken_for_something_else(function, code):
    model = nn.Sequential(nn.Linear(4, 4), Wrapped(function, nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(UnsupportedModelError) as caught:
        read(model, torch.randn(4, 4))
    assert caught.value.code == code


def test_zeros_of_the_shape_of_a_signal():
    graph = read(
        Wrapped(lambda m, x: m[1](torch.maximum(h := m[0](x), torch.zeros_like(h))), *_two()), torch.randn(3, 4)
    )
    (node,) = graph.nonlinear
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.equal(node.activation.function(z), z.clamp(min=0))


def _two():
    return nn.Linear(4, 4), nn.Linear(4, 4)


def test_predictions_of_shifted_and_dependent_values():
    torch.manual_seed(0)
    x = torch.randn(6, 2000)
    model = Wrapped(lambda m, x: m[1](m[0](x).relu() - 0.4), nn.Linear(2000, 2000), nn.Linear(2000, 2000))
    tr.apply_(model, tr.Init("he"))
    q = float(model(x).detach().square().mean())
    assert predict(model, x).layers[-1].q == pytest.approx(q, rel=0.05)
    dependent = Wrapped(lambda m, x: (h := m[0](x)) + F.layer_norm(h, (2000,)), nn.Linear(2000, 2000))
    (_, _, total) = predict(dependent, x, check=True)
    assert total.q == pytest.approx(total.measured[0], rel=0.02)


@pytest.mark.parametrize(
    ("module", "code"), [(nn.RReLU(), "random"), (nn.PReLU(), "learned-activation"), (nn.Softmax(1), "attention")]
)
def test_activations_without_a_rule(module, code):
    with pytest.raises(UnsupportedModelError) as caught:
        read(nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 4)), torch.randn(3, 4))
    assert caught.value.code == code


def test_an_empty_model():
    with pytest.raises(UnsupportedModelError, match="no weight layer"):
        read(nn.Sequential(), torch.randn(2, 3))
    with pytest.raises(UnsupportedModelError, match="no weight layer"):
        read(nn.ReLU(), torch.randn(2, 3))


def test_reading_changes_nothing():
    model = resnet(8, 10)
    model.train()
    x = torch.randn(4, 3, 16, 16)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    read(model, x)
    predict(model, x)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_inputs_of_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    x, y = torch.randn(2, 3), torch.randn(2, 5)
    expected = ["input", "input", "affine", "affine", "sum", "output"]
    assert [n.kind for n in read(Two(), (x, y)).nodes] == expected
    assert [n.kind for n in read(Two(), {"x": x, "y": y}).nodes] == expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 9),
        nn.Conv1d(6, 9, 3, padding=1),
        nn.Conv1d(6, 9, 3, padding=1, groups=3),
        nn.ConvTranspose1d(6, 9, 2, stride=2),
        nn.ConvTranspose1d(6, 9, 2, stride=2, groups=3),
    ],
)
def test_the_scale_of_every_kind_of_layer(layer):
    """The gain of a layer is the mean square that comes out for inputs of mean square 1, over random inputs."""
    torch.manual_seed(0)
    x = torch.randn(400, 6) if isinstance(layer, nn.Linear) else torch.randn(400, 6, 40)
    nn.init.zeros_(layer.bias)
    (node,) = (n for n in read(nn.Sequential(layer), x).nodes if n.kind == "affine")
    assert float(layer(x).detach().square().mean()) == pytest.approx(node.weights[0], rel=0.08)


def _wide(nonlinearity, remedy, depth=6):
    torch.manual_seed(1)
    model = fnn(500, depth, 500, 10, nonlinearity=nonlinearity)
    x = torch.randn(12, 500) + 0.8 * torch.randn(500)
    if remedy is not None:
        tr.apply_(model, remedy, inputs=x)
    return model, x / x.square().mean(1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("nonlinearity", "remedy"),
    [
        ("relu", tr.TAT(eta=0.5)),
        ("relu", tr.DKS()),
        ("tanh", tr.DKS()),
        ("tanh", tr.TAT()),
        ("gelu", tr.TAT()),
        ("tanh", tr.EOC()),
        ("relu", tr.Init("he")),
    ],
)
def test_measured_q_and_c_follow_the_prediction(nonlinearity, remedy):
    """Within the Monte-Carlo error over networks: each is drawn anew several times, and the means are compared."""
    values = []
    draws = 8
    for seed in range(draws):
        model, x = _wide(nonlinearity, None)
        torch.manual_seed(seed)
        tr.apply_(model, remedy, inputs=x)
        prediction = predict(model, x)
        paths = [value.path for value in prediction if value.path and value.kind == "nonlinear"]
        seen = measured(model, x, paths)
        assert [path for path, _, _ in seen] == paths
        values.append([(q, c) for _, q, c in seen])
    seen = torch.tensor(values, dtype=torch.float64)  # (draws, layers, 2)
    expected = torch.tensor([(v.q, v.c) for v in prediction if v.kind == "nonlinear"], dtype=torch.float64)
    error = seen.std(0) / math.sqrt(draws) + torch.tensor([4e-3, 4e-3])  # and what a width of 500 leaves
    assert ((seen.mean(0) - expected).abs() < 5 * error).all()


def test_a_prediction_says_what_will_happen():
    torch.manual_seed(0)
    x = torch.randn(8, 100)
    collapsing = predict(fnn(100, 40, 100, 10), x)  # PyTorch's default: what the biases add is all that is left
    assert collapsing.collapses_at is not None
    assert collapsing.dies_at is None

    def scaled(gain):
        model = fnn(100, 20, 100, 10)
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=(gain / 100) ** 0.5)
                nn.init.zeros_(layer.bias)
        return predict(model, x)

    dying, exploding = scaled(0.5), scaled(8.0)
    assert dying.dies_at.startswith(("relu6", "relu7", "linear7"))  # 4 to the power of -7 is below 1e-4
    assert exploding.explodes_at.startswith(("relu6", "relu7", "linear7"))
    assert dying.explodes_at is exploding.dies_at is None
    shaped = fnn(100, 60, 100, 10)
    tr.apply_(shaped, tr.TAT(), inputs=x)
    healthy = predict(shaped, x)
    assert (healthy.dies_at, healthy.explodes_at, healthy.collapses_at) == (None, None, None)
    assert max(value.c for value in healthy) < 0.91
    assert "relu60" in str(healthy)


def test_a_prediction_ends_at_batchnorm_and_says_so():
    prediction = predict(fnn(8, 3, 8, 2, batchnorm=True), torch.randn(4, 8))
    assert "ends at norm1" in prediction.stopped
    with pytest.raises(ValueError, match="two inputs or more"):
        predict(fnn(8, 3, 8, 2), torch.randn(1, 8))


def test_sums_carry_their_means_along():
    """Two branches that end in ReLUs: without the cross term q would be 1."""

    def both(m, x):
        return 0.6 * m[0](x).relu() + 0.8 * m[1](x).relu()

    torch.manual_seed(0)
    model = Wrapped(both, nn.Linear(2000, 2000), nn.Linear(2000, 2000))
    tr.apply_(model, tr.Init("he"))
    x = torch.randn(6, 2000)
    out = model(x).detach().double()
    last = predict(model, x).layers[-1]
    assert last.q == pytest.approx(float(out.square().mean()), rel=0.03)
    assert last.q > 1.25
    rows = out @ out.T / 2000
    assert last.c == pytest.approx(float((rows / rows.diagonal().mean())[0, 1]), abs=0.05)


def test_a_deep_cnn_is_a_chain():
    assert read(cnn((1, 8, 8), 30, 2, 10, strides=1), torch.randn(2, 1, 8, 8)).depth == 30


def test_inputs_of_any_size_take_no_longer_to_predict():
    torch.manual_seed(0)
    model = fnn(16, 4, 16, 2, nonlinearity="tanh")
    for scale in (1e-3, 1.0, 1e3):
        assert len(predict(model, scale * torch.randn(8, 16))) == 9
    assert "tanh" in str(predict(model, torch.randn(8, 16)))
    assert len(measured(model, torch.randn(8, 16))) == 10


class Blur(nn.Module):
    """A fixed average over places, channel by channel."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("kernel", torch.full((channels, 1, 3, 3), 1 / 9))

    def forward(self, x):
        return F.conv2d(x, self.kernel, padding=1, groups=len(self.kernel))


@pytest.mark.parametrize(
    "over",
    [
        lambda h: h.mean(1, keepdim=True).expand_as(h),
        lambda h: h.amax(1, keepdim=True).expand_as(h),
        lambda h: h.max(1, keepdim=True)[0].expand_as(h),
        lambda h: F.pad(h, (0, 0, 0, 0, 0, 4))[:, 4:],
        lambda h: h.permute(0, 2, 3, 1).mean(-1, keepdim=True).permute(0, 3, 1, 2).expand_as(h),
        lambda h: h.flatten(1).mean(1)[:, None, None, None].expand_as(h),
        lambda h: h.mean(0, keepdim=True).expand_as(h),
    ],
)
def test_operations_over_channels_are_refused(over):
    model = Wrapped(lambda m, x: m[1](over(m[0](x))), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    with pytest.raises(UnsupportedModelError) as caught:
        read(model, torch.randn(3, 4, 5, 5))
    assert caught.value.code == "over-features"


@pytest.mark.parametrize(
    "over",
    [
        lambda h: h.mean((2, 3), keepdim=True),
        lambda h: h.amax(3, keepdim=True),
        lambda h: h.max(2, keepdim=True)[0],
        lambda h: h.permute(0, 2, 3, 1).mean(1, keepdim=True).permute(0, 3, 1, 2),
        lambda h: h.flatten(2).mean(2)[:, :, None, None],
        lambda h: F.pad(h, (1, 1, 1, 1)),
        lambda h: h.view(3, 2, 2, 5, 5).mean(4).view(3, 4, 5, 1),
    ],
)
def test_operations_over_places_keep_the_activation_before_them(over):
    model = Wrapped(lambda m, x: m[1](over(F.relu(m[0](x)))), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    graph = read(model, torch.randn(3, 4, 5, 5))
    assert [node.kind for node in graph.nodes if node.kind != "pass"] == [
        *("input", "affine", "nonlinear", "affine", "output")
    ]


def test_fixed_averages_over_places_and_rotations():
    blurred = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), Blur(4), nn.Conv2d(4, 4, 1))
    assert any(node.detail == "fixed matrix" for node in read(blurred, torch.randn(3, 4, 5, 5)).nodes)

    class Turned(nn.Module):
        def __init__(self, matrix):
            super().__init__()
            self.register_buffer("matrix", matrix)
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.b(self.matrix @ torch.tanh(self.a(x)))

    turn = torch.linalg.qr(torch.randn(5, 5))[0]
    model, x = Turned(turn), torch.randn(8, 5, 6)
    last = predict(model, x, check=True).layers[-1]
    assert last.q == pytest.approx(last.measured[0], rel=0.35)
    with pytest.raises(UnsupportedModelError) as caught:
        read(Turned(torch.full((5, 5), 0.2)), x)
    assert caught.value.code == "fixed-matrix"


def test_the_same_sum_is_the_same_graph_however_its_constants_are_written():
    k = 0.5**0.5
    forms = [
        lambda a, b: k * a + k * b,
        lambda a, b: k * (a + b),
        lambda a, b: (a + b) / 2**0.5,
        lambda a, b: torch.add(a * k, b, alpha=k),
        lambda a, b: (a + b).mul(k),
        lambda a, b: torch.stack([a, b]).sum(0) * k,
        lambda a, b: 2 * k * torch.lerp(a, b, 0.5),
        lambda a, b: k * a - -k * b,
    ]
    for form in forms:
        model = Wrapped(
            lambda m, x, form=form: m[2](F.leaky_relu(form(m[0](x), F.leaky_relu(m[1](x))))), *_two(), nn.Linear(4, 4)
        )
        graph = read(model, torch.randn(3, 4))
        (total,) = [node for node in graph.nodes if node.kind == "sum"]
        assert total.weights == pytest.approx((k, k))
        assert [node.activation.leaky for node in graph.nonlinear] == [(0.01, 1.0)] * 2
        assert not any(node.kind == "scale" for node in graph.nodes)


def test_a_learned_scale_is_no_constant():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return self.b(x + self.scale * F.relu(self.a(x)))

    graph = read(Scaled(), torch.randn(3, 4))
    assert [(node.kind, node.weights) for node in graph.nodes if node.kind in ("scale", "sum")] == [
        ("scale", (0.5,)),
        ("sum", (1.0, 1.0)),
    ]


def test_reading_and_predicting_leave_what_forward_would_change():
    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                self.a.weight.mul_(1.1)
            return torch.tanh(self.a(x))

    model, x = Moves(), torch.randn(3, 4)
    before = model.a.weight.detach().clone()
    predict(model, x, check=True)
    assert torch.equal(model.a.weight, before)
