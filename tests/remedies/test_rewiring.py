"""What is hard about rewiring a model: shared and in-place modules, data flow, torch's fused layers, undoing."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from models_for_tests import mlp
from refusals import refused
from trainability.errors import ArgumentError, ArgumentTypeError, StateError, UnsupportedModelError
from trainability.introspect.dataflow import OUTPUT, watch_calls
from trainability.nn.ic import ICLayer
from trainability.nn.norms import FeatureGroupNorm
from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.shortcut import ScaledAdd, fixup_factors, shortcut
from trainability.nn.weighted_sum import WeightedSum


class Net(nn.Module):
    """Modules by name, and a forward of one's own."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


def linear() -> nn.Linear:
    return nn.Linear(8, 8)


def test_one_activation_in_several_places_of_a_sequential():
    act = nn.ReLU()
    model = nn.Sequential(linear(), act, linear(), act, nn.Linear(8, 4))
    plain = copy.deepcopy(model)
    x = torch.randn(6, 8)
    report = tr.apply_(model, tr.Residual(), inputs=x)
    assert len(report.changes) == 2
    h = x + plain[0](x).relu()
    assert torch.allclose(model(x), plain[4](h + plain[2](h).relu()), atol=1e-6)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_in_place_stands_between_a_batchnorm_and_the_next_layer(inplace):
    model = nn.Sequential(linear(), nn.BatchNorm1d(8), nn.ReLU(inplace), linear(), nn.LayerNorm(8), nn.ReLU(), linear())
    with torch.no_grad():
        model[1].bias.fill_(3)
    x = torch.randn(6, 8)
    report = tr.apply_(model, tr.IC(), inputs=x)
    assert "are dropped" in next(c.why for c in report.changes if c.path == "1")
    assert model[3].ic.norm.bias.abs().max() == 0
    report.undo()
    late = nn.Sequential(linear(), nn.ReLU(inplace), nn.LayerNorm(8), linear())
    assert [c.path for c in tr.apply_(late, tr.Normalize(), inputs=x).changes] == ["0.norm"]


def test_batchnorms_stay_where_no_ic_layer_takes_their_place():
    x = torch.randn(6, 8)
    norm = nn.BatchNorm1d(8)
    two = Net(lambda m, x: (m.norm(m.a(x)), m.b(m.a(x))), a=linear(), b=linear(), norm=norm)
    assert "output of the model" in tr.apply_(two, tr.IC(), inputs=x).skipped["norm"]
    gru = nn.GRU(8, 8, batch_first=True)
    before = Net(
        lambda m, x: m.b(m.gru(m.norm(m.a(x)).unsqueeze(1))[0][:, 0]), a=linear(), b=linear(), norm=norm, gru=gru
    )
    report = tr.apply_(before, tr.IC(), inputs=x)
    assert "gru takes what it gives" in report.skipped["norm"]
    assert "weights of another kind" in report.skipped["gru"]
    named = Net(lambda m, x: m.b(m.basic(m.a(x))), a=linear(), b=linear(), basic=nn.Sequential())
    named.basic.add_module("norm", nn.BatchNorm1d(8))
    assert {c.path for c in tr.apply_(named, tr.IC(), inputs=x).changes} == {"b.ic", "basic.norm"}


def test_what_is_carried_over_normalizes_the_same_thing():
    channels = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 4))
    report = tr.apply_(channels, tr.IC(), inputs=torch.randn(4, 3, 10))
    assert not any("statistics" in change.why for change in report.changes)
    whole = nn.Sequential(linear(), nn.BatchNorm1d(8, track_running_stats=False), linear())
    assert not any("statistics" in change.why for change in tr.apply_(whole, tr.IC(), inputs=torch.randn(4, 8)).changes)
    frozen = nn.Sequential(linear(), nn.BatchNorm1d(8).requires_grad_(False).eval(), linear())
    tr.apply_(frozen, tr.IC(), inputs=torch.randn(4, 8))
    own = frozen[2].ic.norm
    assert not own.training
    assert not own.weight.requires_grad


@pytest.mark.parametrize("inputs", [None, torch.randn(8, 8)])
def test_carried_over_exactly(inputs):
    model = nn.Sequential(linear(), nn.ReLU(), nn.Sequential(nn.Identity(), nn.BatchNorm1d(8)), linear())
    for _ in range(3):
        model(3 * torch.randn(16, 8) + 1)
    with torch.no_grad():
        model[2][1].weight.uniform_(0.5, 2)
        model[2][1].bias.uniform_(-1, 1)
    x = torch.randn(5, 8)
    expected = model.eval()(x)
    tr.apply_(model, tr.IC(keep=0.5), inputs=inputs)
    assert isinstance(model[2][1], nn.Identity)
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_each_head_of_a_model_is_an_output():
    model = Net(
        lambda m, x: (F.log_softmax(m.h1(m.a(x).relu()), -1), m.h2(m.a(x))), a=linear(), h1=linear(), h2=linear()
    )
    report = tr.apply_(model, tr.Normalize("layer"), inputs=torch.randn(6, 8))
    assert [c.path for c in report.changes] == ["a.norm"]
    assert set(report.skipped) == {"h1", "h2"}


def test_data_flow_is_followed_through_functions_and_in_place_changes():
    def run(m, x):
        h = m.a(x)
        h += 1
        return m.c(torch.cat([F.relu_(h)[:, :4], m.b(x)[:, 4:]], 1))

    calls = watch_calls(Net(run, a=linear(), b=linear(), c=linear()), torch.randn(3, 8))
    assert calls.feeds == {"a": {"c"}, "b": {"c"}, "c": {OUTPUT}}
    assert calls.from_inputs == {"", "a", "b"}


def test_fixup_goes_by_the_order_in_which_layers_run():
    branch = Net(lambda m, x: m.second(m.first(x).relu()), second=linear(), first=linear())
    model = nn.Sequential(linear(), branch, linear())
    tr.apply_(model, tr.Residual("fixup"), inputs=torch.randn(4, 8), where="1")
    assert branch.second.weight.abs().max() == 0
    assert branch.first.weight.abs().max() > 0


def test_two_shortcuts_cannot_begin_at_one_layer():
    model = nn.Sequential(nn.Sequential(nn.Sequential(linear()), nn.ReLU()), linear())
    with refused(UnsupportedModelError, "modules-overlap"):
        tr.apply_(model, tr.Residual("rezero"), inputs=torch.randn(4, 8), where=["0", "0.0"])
    assert not any("shortcut" in name for name, _ in model.named_modules())


def test_a_sequential_that_something_else_walks_through_gets_no_shortcuts():
    def walk(m, x):
        for layer in m.body:
            x = layer(x)
        return x

    model = Net(walk, body=mlp())
    with refused(ArgumentError, "nothing-to-change"):
        tr.apply_(model, tr.Residual(), inputs=torch.randn(4, 8))


def test_weights_of_zero_have_no_direction():
    model = mlp()
    with torch.no_grad():
        model[2].weight[3] = 0
    with refused(UnsupportedModelError, "weights-zero"):
        tr.apply_(model, tr.Normalize("weight"))
    grouped = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(6, 2, 3))
    with refused(UnsupportedModelError, "layer-kind"):
        tr.apply_(grouped, tr.Normalize("weight"))


def test_the_fused_transformer_layer_of_torch_does_not_pass_a_remedy_by():
    x, mask = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True, dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        for remedy, where in (
            (tr.SELU(init=None), "*activation"),
            (tr.IC(keep=1.0), None),
            (tr.Normalize("layer"), None),
        ):
            encoder = nn.TransformerEncoder(copy.deepcopy(layer), 2).eval()
            inputs = {"src": x, "src_key_padding_mask": mask}
            report = tr.apply_(encoder, remedy, inputs=inputs, where=where)
            with torch.no_grad():
                fast = encoder(**inputs)
            slow = encoder(x.clone().requires_grad_(), src_key_padding_mask=mask).detach()
            assert torch.allclose(fast[~mask], slow[~mask], atol=1e-5)
            report.undo()
            assert encoder.use_nested_tensor


def test_remedies_are_undone_in_the_opposite_order():
    model = mlp()
    first, second = tr.apply_(model, tr.IC()), tr.apply_(model, tr.Normalize("layer"))
    with refused(StateError, "undo-order"):
        first.undo()
    second.undo()
    first.undo()
    assert list(model.state_dict()) == list(mlp().state_dict())
    tr.apply_(model, tr.IC())  # its report is dropped, and with it the way back
    third = tr.apply_(model, tr.Normalize("layer"))
    third.undo()
    assert any(isinstance(m, ICLayer) for m in model.modules())


def test_a_wrapper_for_several_ranks_would_not_know_new_parameters(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(mlp())
        before = list(wrapped.module.state_dict())
        with refused(ArgumentError, "adds-parameters"):
            tr.apply_(wrapped, tr.Normalize("layer"))
        assert list(wrapped.module.state_dict()) == before
        tr.apply_(wrapped, tr.Init("he"))
    finally:
        dist.destroy_process_group()


def test_a_compiled_model_is_compiled_again():
    model, x = mlp(), torch.randn(6, 8)
    compiled = torch.compile(model, backend="eager")
    before = compiled(x)
    report = tr.apply_(compiled, tr.Normalize("layer"), inputs=x)
    assert torch.allclose(compiled(x), model(x))
    assert not torch.allclose(compiled(x), before)
    report.undo()
    assert torch.allclose(compiled(x), before)


def test_selu_with_where_keeps_the_weights_and_says_so():
    model = nn.Sequential(linear(), nn.ReLU(), linear(), nn.PReLU(), linear(), nn.ReLU())
    before = copy.deepcopy(model[0].weight)
    report = tr.apply_(model, tr.SELU(), where="3", inputs=torch.randn(4, 8))
    assert torch.equal(model[0].weight, before)
    assert any("weights are kept" in note for note in report.notes)
    assert "learned is dropped" in report.changes[0].why
    report = tr.apply_(model, tr.SELU(), inputs=torch.randn(4, 8))
    assert "output of the model" in report.skipped["5"]
    quantized = nn.Sequential(linear(), nn.ReLU(), linear())
    quantized[2].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with refused(UnsupportedModelError, "quantized"):
        tr.apply_(quantized, tr.SELU())


def test_messages_say_what_is_missing():
    with refused(ArgumentError, "nothing-to-change"):
        tr.apply_(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8)), tr.IC())
    with refused(ArgumentTypeError, "wrong-type"):
        tr.IC("0.9")
    assert tr.IC(1e-13).keep == 1e-13
    assert ICLayer(3, 1e-13).dropout.p < 1
    model = mlp()
    tr.apply_(model, tr.Normalize("weight"))
    assert len(tr.apply_(model, tr.Residual(), inputs=torch.randn(2, 8)).changes) == 3


def test_a_shaped_model_takes_no_ic_layers():
    model, x = mlp(depth=20), torch.randn(4, 8)
    tr.apply_(model, tr.TAT(eta=0.5), inputs=x)
    with refused(UnsupportedModelError, "shaped"):
        tr.apply_(model, tr.IC(), inputs=x)
    with refused(ArgumentTypeError, "wrong-type"):
        tr.apply_(model, tr.IC)


def test_bounded_activations_that_a_sequential_goes_on_with_are_no_gates():
    model = nn.Sequential(linear(), nn.Tanh(), linear(), nn.Sequential(linear(), nn.Sigmoid()), linear())
    report = tr.apply_(model, tr.SELU())
    assert isinstance(model[1], nn.SELU)
    assert "may be a gate" in report.skipped["3.1"]


def test_a_parametrized_weight_is_initialized_before():
    model = mlp()
    tr.apply_(model, tr.Normalize("weight"))
    assert "initialize it before that" in tr.apply_(model, tr.Init("he")).skipped["0"]


def test_too_few_samples_for_pairs_are_named():
    flow = tr.measure(mlp(), torch.randn(3, 8), independence=True)
    assert "9 are the least" in str(flow)


def weights_of(dtype: torch.dtype) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    for layer in model[::2]:
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return model


REMEDIES = [tr.Init(), tr.Init("default"), tr.Init("suo"), tr.IC(), tr.Normalize(), tr.Normalize("weight")]


@pytest.mark.parametrize("remedy", [*REMEDIES, tr.Normalize("group")])
def test_weights_that_cannot_be_set_are_left_out(remedy):
    empty = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    with warnings.catch_warnings(action="ignore"):  # torch warns of a layer without neurons
        empty[0], empty[2] = nn.Linear(6, 0), nn.Linear(0, 6)
    for model in (empty[:4], weights_of(torch.complex64), weights_of(torch.float8_e4m3fn)):
        with refused(ArgumentError, "nothing-to-change"):
            tr.apply_(model, remedy)


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda: tr.Init([]), ArgumentError, "unknown-choice"),
        (lambda: tr.Normalize("group", groups=2.5), ArgumentTypeError, "wrong-type"),
        (lambda: tr.Normalize("group", groups=0), ArgumentError, "out-of-range"),
        (lambda: tr.Residual(layers="a"), ArgumentTypeError, "wrong-type"),
        (lambda: tr.IC(torch.ones(2)), ArgumentTypeError, "wrong-type"),
        (lambda: tr.IC(batchnorm=[]), ArgumentError, "unknown-choice"),
        (lambda: tr.SELU("he"), ArgumentError, "unknown-choice"),
        (lambda: ICLayer(0), ArgumentError, "out-of-range"),
        (lambda: ICLayer("a"), ArgumentTypeError, "wrong-type"),
        (lambda: FeatureGroupNorm(2, 8)(torch.randn(4, 6)), ArgumentError, "input-shape"),
        (lambda: ScaledAdd("a"), ArgumentTypeError, "wrong-type"),
        (lambda: shortcut("half", 2), ArgumentError, "unknown-choice"),
        (lambda: shortcut("skipinit", 0), ArgumentError, "out-of-range"),
        (lambda: fixup_factors([], []), ArgumentError, "empty"),
        (lambda: WeightedSum([]), ArgumentError, "empty"),
        (lambda: WeightedSum(["a"]), ArgumentTypeError, "wrong-type"),
        (lambda: WeightedSum([1.0])(torch.ones(1), torch.ones(1)), ArgumentError, "counts-differ"),
        (lambda: WeightedSum([1.0]).set_extra_state("a"), ArgumentTypeError, "wrong-type"),
        (lambda: ShapedActivation("relu", {"slope": 1.0}), ArgumentError, "unknown-choice"),
        (lambda: ShapedActivation("relu", [1.0]), ArgumentTypeError, "wrong-type"),
        (lambda: ShapedActivation("relu", {}).set_extra_state(torch.ones(2)), ArgumentError, "state-shape"),
    ],
)
def test_wrong_arguments(call, error, code):
    with refused(error, code):
        call()
