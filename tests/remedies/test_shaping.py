"""DKS, TAT and EOC on models: what is changed, what is refused, what is put back."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from refusals import code_of
from trainability.errors import TrainabilityError, UnsupportedModelError
from trainability.models import cnn, fnn, resnet
from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.weighted_sum import WeightedSum
from trainability.signal import InfeasibleError, read


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.first(x))
        y = self.second(y)
        y += x
        y = F.relu(y)
        return F.dropout(y, 0.3, training=self.training)


class Net(nn.Module):
    """Activations as modules, shared, as functions, as methods; additions in forward."""

    def __init__(self, blocks=6):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(blocks)])
        self.head = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 4)
        self.alias = self.blocks[0].act

    def forward(self, x, scale=None):
        x = torch.tanh(self.stem(x))
        x = self.blocks(x).mean((2, 3))
        return self.classifier(self.head(x).relu())


def images(count=4):
    return torch.randn(count, 3, 6, 6)


def same(state, other):
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


REMEDIES = [tr.DKS(), tr.TAT(eta=0.6), tr.EOC()]


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda r: type(r).__name__)
def test_undo_is_exact_and_a_dry_run_changes_nothing(remedy):
    plain = resnet(26, 4, norm=False, preactivation=True)
    model, x = (Net() if isinstance(remedy, tr.DKS) else plain).eval(), images()
    before, shown = copy.deepcopy(model.state_dict()), str(model)
    output = model(x)
    dry = tr.apply_(model, remedy, inputs=x, dry_run=True)
    assert not dry.applied
    assert same(before, model.state_dict())
    report = tr.apply_(model, remedy, inputs=x)
    assert [c.path for c in report.changes] == [c.path for c in dry.changes]
    assert not torch.equal(model(x), output)
    report.undo()
    assert same(before, model.state_dict())
    assert str(model) == shown
    assert torch.equal(model(x), output)
    assert all("forward" not in vars(module) for module in model.modules())


def test_every_activation_is_shaped_however_it_is_called():
    model, x = Net(), images()
    tr.apply_(model, tr.DKS(), inputs=x)
    assert isinstance(model.blocks[0].act, ShapedActivation)
    assert model.alias is model.blocks[0].act
    graph = read(model, x)
    paths = [node.path for node in graph.nonlinear]
    assert paths[:3] == ["shaped_tanh", "blocks.0.act", "blocks.0.shaped_relu"]
    assert paths[-1] == "shaped_relu"
    assert all(isinstance(model.get_submodule(path), ShapedActivation) for path in paths)
    assert all(w == pytest.approx(0.5**0.5) for n in graph.nodes if n.kind == "sum" for w in n.weights)
    calls = []
    for path in {*paths}:
        model.get_submodule(path).register_forward_hook(lambda *_: calls.append(1))
    model(x)
    assert len(calls) == len(paths)


def test_the_output_is_what_the_constants_say():
    model, x = fnn(5, 40, 5, 2, nonlinearity="tanh"), torch.randn(3, 5)
    tr.apply_(model, tr.DKS(), inputs=x)
    c = model.tanh1.constants
    y = x
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            y = layer(y)
        elif isinstance(layer, ShapedActivation):
            y = c["output_scale"] * (torch.tanh(c["input_scale"] * y + c["input_shift"]) + c["output_shift"])
    assert torch.allclose(model(x), y, atol=1e-5)


def test_training_and_evaluation_stay_apart_in_a_rewritten_forward():
    model, x = Net(), images()
    tr.apply_(model, tr.DKS(), inputs=x)
    assert not torch.equal(model.train()(x), model(x))  # dropout draws anew
    assert torch.equal(model.eval()(x), model(x))


def test_copies_pickles_and_compilation():
    model, x = Net().eval(), images()
    tr.apply_(model, tr.DKS(), inputs=x)
    output = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), output)
    with torch.no_grad():
        twin.blocks[0].first.weight.zero_()
    assert torch.equal(model(x), output)
    assert not torch.equal(twin(x), output)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), output)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), output)


def test_a_shaped_model_trains():
    model, x = Net(2), images(8)
    tr.apply_(model, tr.DKS(), inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    F.cross_entropy(model(x), torch.arange(8) % 4).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()


_FRESH = """
import sys
import torch
import trainability as tr
from trainability.models import resnet
x, state, output = torch.load(sys.argv[1], weights_only=True)
model = resnet(14, 4, norm=False, nonlinearity="tanh").eval()
tr.apply_(model, tr.DKS(zeta=1.3, init=None), inputs=x)  # other constants, which the state replaces
model.load_state_dict(state)
assert torch.equal(model(x), output)
"""


def test_a_shaped_model_reloads_in_a_fresh_process(tmp_path):
    model, x = resnet(14, 4, norm=False, nonlinearity="tanh").eval(), images()
    tr.apply_(model, tr.DKS(zeta=1.5), inputs=x)
    torch.save((x, model.state_dict(), model(x)), tmp_path / "shaped.pt")
    subprocess.run([sys.executable, "-c", _FRESH, str(tmp_path / "shaped.pt")], check=True)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*_extra_state"):
        resnet(14, 4, norm=False, nonlinearity="tanh").load_state_dict(model.state_dict())


def test_a_state_holds_tensors_alone():
    model, x = resnet(8, 4, norm=False), images()
    tr.apply_(model, tr.TAT(eta=0.5), inputs=x)
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


def test_weights_are_orthogonal_and_biases_zero():
    model, x = cnn((3, 6, 6), 20, 5, 4), images()
    report = tr.apply_(model, tr.TAT(eta=0.5), inputs=x)
    assert report.changes[0].path == "conv1"
    assert "drawn anew" in report.changes[0].why
    weight = model.conv2.weight
    assert torch.allclose(weight[:, :, 1, 1] @ weight[:, :, 1, 1].T, torch.eye(5), atol=1e-5)
    assert weight.count_nonzero() == 25
    assert not any(m.bias.count_nonzero() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_init_none_keeps_the_weights():
    model, x = fnn(5, 40, 5, 2), torch.randn(3, 5)
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = tr.apply_(model, tr.TAT(init=None), inputs=x)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all("ShapedActivation" in change.after for change in report.changes)


def test_the_edge_of_chaos_has_its_variances():
    torch.manual_seed(0)
    model = fnn(400, 3, 400, 10, nonlinearity="tanh")
    tr.apply_(model, tr.EOC(), inputs=torch.randn(3, 400))
    assert model.linear2.weight.var().item() * 400 == pytest.approx(2.153303, rel=0.02)
    assert torch.cat([model.linear1.bias, model.linear2.bias, model.linear3.bias]).var().item() == pytest.approx(
        0.150965, rel=0.12
    )
    assert isinstance(model.tanh1, nn.Tanh)


def test_shortcuts_have_the_weight_that_was_chosen():
    model, x = resnet(20, 4, norm=False), images()
    tr.apply_(model, tr.DKS(shortcut=0.8), inputs=x)
    sums = [module for module in model.modules() if isinstance(module, WeightedSum)]
    assert len(sums) == 9
    assert all(s.weights == pytest.approx((0.8, 0.6)) for s in sums)
    model = Net(6)
    tr.apply_(model, tr.DKS(shortcut=0.8), inputs=x)
    assert model.blocks[0].weighted_sum_0.weights == pytest.approx((0.6, 0.8))  # the branch comes first there


def test_batchnorm_is_refused_or_removed():
    model, x = resnet(8, 4).eval(), images()
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, tr.TAT(eta=0.5), inputs=x)
    assert (caught.value.code, caught.value.path) == ("batchnorm", "stem_norm")
    output = model(x)
    report = tr.apply_(model, tr.TAT(eta=0.5, batchnorm="remove"), inputs=x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    model(x)
    report.undo()
    assert torch.equal(model(x), output)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return F.relu(F.batch_norm(self.layer(x), torch.zeros(3), torch.ones(3)))

    model = nn.Sequential(Functional(), nn.Linear(3, 2))
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, tr.DKS(1.2, batchnorm="remove"), inputs=torch.randn(4, 3))
    assert caught.value.code == "batchnorm-function"


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that holds its activation, as timm has it."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_a_batchnorm_goes_and_the_activation_that_it_holds_stays():
    layers = [m for _ in range(4) for m in (nn.Conv2d(6, 6, 3, padding=1), NormAct(6))]
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(216, 4)).eval(), torch.randn(4, 6, 6, 6)
    output = model(x)
    report = tr.apply_(model, tr.DKS(zeta=1.2, batchnorm="remove"), inputs=x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert isinstance(model[1].act, ShapedActivation)
    report.undo()
    assert torch.equal(model(x), output)


class GainedConv(nn.Conv2d):
    """Weights that are standardized to variance 1 / fan-in, times a learned gain, as in NFNets."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x):
        spread = self.weight.std((1, 2, 3), keepdim=True) * self.weight[0].numel() ** 0.5
        return F.conv2d(x, self.gain * (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / spread, self.bias)


def test_a_weight_with_a_gain_is_the_weight():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(6) for m in (GainedConv(64), nn.ReLU())], nn.Conv2d(64, 64, 1))
    x = torch.randn(4, 64, 3, 3)
    report = tr.apply_(model, tr.DKS(zeta=1.1), inputs=x)  # whose means are 0, so that centering takes nothing away
    assert report.check.layers[-1].measured_q == pytest.approx(1, rel=0.2)
    assert torch.equal(model[0].gain, torch.ones_like(model[0].gain))


def test_where_chooses_and_the_rest_is_reported():
    model, x = fnn(5, 40, 5, 2), torch.randn(3, 5)
    first = model.linear40.weight.clone()
    report = tr.apply_(model, tr.TAT(), where=["relu?", "relu[12]?", "linear?"], inputs=x)
    assert isinstance(model.relu29, ShapedActivation)
    assert isinstance(model.relu30, nn.ReLU)
    assert "not selected" in report.skipped["relu30"]
    assert torch.equal(model.linear40.weight, first)
    with pytest.raises(ValueError, match="matched no layer"):
        tr.apply_(fnn(5, 40, 5, 2), tr.TAT(), where="nothing", inputs=x)


def test_an_activation_at_the_output_is_left():
    model, x = nn.Sequential(fnn(5, 40, 5, 2), nn.Sigmoid()), torch.randn(3, 5)
    report = tr.apply_(model, tr.TAT(), inputs=x)
    assert isinstance(model[1], nn.Sigmoid)
    assert "output of the model" in report.skipped["1"]


class Fails(nn.Module):
    """Written out in forward in several operations, or changing in place what it does not return."""

    def __init__(self, function):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.inner(x))


def test_nothing_is_half_applied():
    decides = Fails(lambda z: F.relu(z) if z.shape[0] == 3 else z)
    model, x = nn.Sequential(fnn(4, 20, 4, 4), decides, nn.Linear(4, 2)), torch.randn(3, 4)
    before, shown = copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, tr.DKS(), inputs=x)
    assert (caught.value.code, caught.value.path) == ("forward-not-traceable", "1")
    assert same(before, model.state_dict())
    assert str(model) == shown


def test_a_failure_while_changing_puts_everything_back(monkeypatch):
    model, x = fnn(5, 40, 5, 2), torch.randn(3, 5)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(ShapedActivation, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tr.apply_(model, tr.TAT(), inputs=x)
    assert same(before, model.state_dict())
    assert isinstance(model.relu1, nn.ReLU)


def refusal(model, remedy, inputs=None):
    with pytest.raises(TrainabilityError) as caught:
        tr.apply_(model, remedy, inputs=inputs)
    return caught.value


def test_other_refusals():
    x = torch.randn(3, 5)
    assert refusal(fnn(5, 40, 5, 2), tr.TAT()).code == "inputs-needed"
    shallow = refusal(fnn(5, 10, 5, 2), tr.TAT(), x)
    assert isinstance(shallow, InfeasibleError)
    assert shallow.code == "eta-out-of-reach"
    assert refusal(fnn(5, 40, 5, 2, residual=True), tr.TAT(), x).code == "sum-of-means"
    model = fnn(5, 40, 5, 2)
    tr.apply_(model, tr.TAT(), inputs=x)
    assert refusal(model, tr.TAT(), x).code == "shaped-already"
    assert refusal(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2)), tr.TAT(), x).code == "no-activation"
    even = refusal(nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU(), nn.Conv2d(4, 4, 3)), tr.DKS(zeta=1.2), images())
    assert even.path == "0"
    parametrized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 2))
    assert refusal(parametrized, tr.DKS(), x).code == "weight-layout"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: tr.DKS(zeta=0.5), "zeta"),
        (lambda: tr.TAT(eta=2.0), "eta"),
        (lambda: tr.TAT(shortcut=1.5), "shortcut"),
        (lambda: tr.TAT(init="he"), "init"),
        (lambda: tr.EOC(batchnorm="keep"), "batchnorm-option"),
    ],
)
def test_remedies_refuse_what_is_out_of_range(make, code):
    assert code_of(make) == code


def test_remedies_are_values():
    assert tr.DKS() == tr.DKS(zeta=1.5)
    settings = {"eta": 0.8, "tau": 0.3, "init": "suo", "shortcut": None, "batchnorm": "refuse"}
    assert tr.TAT(eta=0.8).to_dict() == {"name": "tat", "version": 1, **settings}
    assert hash(tr.EOC()) == hash(tr.EOC())


def test_lbe_finds_shaped_activations():
    model, x = Net(), images()
    tr.apply_(model, tr.DKS(), inputs=x)
    assert "blocks.0.shaped_relu" in tr.LBE(model, inputs=x).selection.paths
    assert tr.measure(model, x).layers[0].name == "shaped_tanh"


def test_a_scale_that_would_undo_the_shaping_is_refused():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.gamma = nn.Parameter(torch.full((4,), scale))

        def forward(self, x):
            return self.layer(x) * self.gamma

    x = torch.randn(3, 4)
    scaled = refusal(nn.Sequential(nn.Linear(4, 4), Scaled(0.1), nn.Tanh(), nn.Linear(4, 2)), tr.DKS(), x)
    assert (scaled.code, scaled.path) == ("scaled-signal", "1")
    tr.apply_(nn.Sequential(nn.Linear(4, 4), Scaled(1.0), nn.Tanh(), nn.Linear(4, 2)), tr.DKS(), inputs=x)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(6, 9), (6,)),
        (nn.Linear(9, 6), (9,)),
        (nn.Conv2d(6, 9, 3, padding=1), (6, 8, 8)),
        (nn.Conv2d(6, 12, 3, padding=1, groups=3), (6, 8, 8)),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 8, 8)),
        (nn.Conv2d(6, 30, 2, stride=2), (6, 8, 8)),
        (nn.ConvTranspose2d(6, 9, 3, padding=1), (6, 8, 8)),
        (nn.ConvTranspose2d(6, 9, 2, stride=2), (6, 8, 8)),
        (nn.ConvTranspose2d(6, 12, 2, stride=2, groups=3), (6, 8, 8)),
    ],
)
def test_suo_keeps_the_mean_square_of_every_kind_of_layer(layer, inputs):
    """For layers that widen to the bit; for those that narrow on average over inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    tr.apply_(model, tr.Init("suo"))
    x = torch.randn(800, *inputs)
    y = layer(x).detach()
    assert y.square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.02)
    if y[0].numel() >= x[0].numel() and getattr(layer, "groups", 1) == 1:
        per_input = y.flatten(1).square().mean(1) / x.flatten(1).square().mean(1)
        assert torch.allclose(per_input, torch.ones(800), atol=1e-4)


def test_the_edge_of_chaos_keeps_q_from_the_first_layer_on():
    torch.manual_seed(0)
    model, x = fnn(800, 6, 800, 10, nonlinearity="tanh"), torch.randn(20, 800)
    tr.apply_(model, tr.EOC(), inputs=x)
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear) and layer.out_features == 800:
            assert x.square().mean().item() == pytest.approx(1, rel=0.1)
    assert refusal(resnet(26, 10, norm=False), tr.EOC(), images()).code == "uneven-sum"
    assert refusal(fnn(5, 4, 5, 2, residual=True), tr.EOC(), torch.randn(3, 5)).code == "sum-of-means"


def test_lsuv_leaves_batchnorm_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    before = copy.deepcopy(model.state_dict())
    report = tr.apply_(model, tr.Init("lsuv"), inputs=torch.randn(20, 8))
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    model.eval()
    report.undo()
    assert same(before, model.state_dict())
    assert not model.training


def test_the_report_says_what_the_result_depends_on():
    layers = [m for _ in range(10) for m in (nn.Linear(16, 16), nn.SiLU(), nn.Dropout(0.5))]
    model, x = nn.Sequential(*layers, nn.Linear(16, 2)), 10 * torch.randn(40, 16)
    report = tr.apply_(model, tr.EOC(), inputs=x)
    assert any("mean square of the inputs is 9" in note for note in report.notes)
    assert "multiplies the mean square by 2" in report.skipped["2"]
    assert any("silu" in note and "repels" in note for note in report.notes)
    quiet = tr.apply_(fnn(16, 20, 16, 2), tr.TAT(), inputs=torch.randn(40, 16))
    assert quiet.skipped == {}


def test_undo_puts_back_weights_that_only_training_changed():
    model, x = fnn(5, 40, 5, 2), torch.randn(3, 5)
    before = copy.deepcopy(model.state_dict())
    report = tr.apply_(model, tr.TAT(init=None), inputs=x)
    with torch.no_grad():
        model.linear1.weight.add_(1)
    report.undo()
    assert same(before, model.state_dict())
