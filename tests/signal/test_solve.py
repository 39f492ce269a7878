"""Graphs, the subnetwork-maximizing function, and the constants of DKS, TAT and EOC."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import signal_reference as reference
from refusals import code_of
from trainability.errors import UnsupportedModelError
from trainability.signal import (
    DKSTarget,
    EOCTarget,
    InfeasibleError,
    Node,
    SignalGraph,
    TATTarget,
    chain,
    residual,
    series,
    solve,
)
from trainability.signal.targets import rising_root

PUBLISHED = json.loads((Path(__file__).parent / "constants/dks.json").read_text())["constants"]


def graph_of(name):
    if name.startswith("mlp"):
        return chain(int(name.removeprefix("mlp")))
    return series(*[residual(chain(2), 0.5)] * 16, chain(1))


def maximum_of(name, r, start):
    """M written out for each of the two families."""
    if name.startswith("mlp"):
        for _ in range(int(name.removeprefix("mlp"))):
            start = r(start)
        return start
    x = start
    for _ in range(16):
        x = 0.25 * x + 0.75 * r(r(x))
    return max(r(x), r(r(start)))


def _leaky_c(slope, c):
    return c + (1 - slope) ** 2 / (math.pi * (1 + slope**2)) * (math.sqrt(1 - c * c) - c * math.acos(c))


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda e: f"{e['activation']}-{e['method']}-{e['graph']}")
def test_conditions_hold_and_constants_are_the_published_ones(entry):
    dks, name = entry["method"] == "DKS", entry["graph"]
    solution = solve(entry["activation"], DKSTarget() if dks else TATTarget(), graph_of(name))
    values = reference.local_values(*reference.shaped(entry["activation"], solution.constants))
    assert values["Q(1)"] == pytest.approx(1, abs=1e-8)
    if dks:
        assert values["Q'(1)"] == pytest.approx(1, abs=1e-8)
        assert values["C(0)"] == pytest.approx(0, abs=1e-8)
        assert maximum_of(name, lambda y: values["C'(1)"] * y, 1.0) == pytest.approx(1.5, abs=1e-8)
    else:
        assert values["C'(1)"] == pytest.approx(1, abs=1e-8)
        if entry["activation"] == "leaky_relu":
            slope = solution.constants["negative_slope"]
            assert maximum_of(name, lambda c: _leaky_c(slope, c), 0.0) == pytest.approx(0.9, abs=1e-8)
        else:
            assert values["Q'(1)"] == pytest.approx(1, abs=1e-8)
            assert maximum_of(name, lambda y: values["C''(1)"] + y, 0.0) == pytest.approx(0.3, abs=1e-8)
    assert max(map(abs, solution.residuals.values())) < 1e-9
    # The published constants are as good as their own residual; those of the leaky ReLU under TAT have a unique answer.
    close = 1e-8 if (entry["activation"], entry["method"]) == ("leaky_relu", "TAT") else 1e-7 + 300 * entry["residual"]
    assert solution.constants == pytest.approx(entry["constants"], rel=close, abs=close)


@pytest.mark.parametrize(
    ("depth", "slope"),
    [
        (15, 0.0806),
        (20, 0.1814),
        (30, 0.3027),
        (50, 0.4305),
        (100, 0.5704),
        (200, 0.6796),
        (500, 0.7862),
        (1000, 0.8444),
    ],
)
def test_slopes_of_chains(depth, slope):
    assert solve("relu", TATTarget(eta=0.9), chain(depth)).constants["negative_slope"] == pytest.approx(slope, abs=5e-5)


@pytest.mark.parametrize("name", ["sigmoid", "erf", "silu", "gelu", "softsign", "atan", "asinh", "bentid", "softplus"])
@pytest.mark.parametrize("target", [DKSTarget(1.3), TATTarget(tau=0.2)])
def test_other_activations_meet_their_conditions(name, target):
    solution = solve(name, target, chain(30))
    values = reference.local_values(*reference.shaped(name, solution.constants))
    assert values["Q(1)"] == pytest.approx(1, abs=1e-8)
    assert values["Q'(1)"] == pytest.approx(1, abs=1e-8)
    if isinstance(target, DKSTarget):
        assert values["C'(1)"] == pytest.approx(1.3 ** (1 / 30), abs=1e-8)
        assert values["C(0)"] == pytest.approx(0, abs=1e-8)
    else:
        assert values["C'(1)"] == pytest.approx(1, abs=1e-8)
        assert values["C''(1)"] == pytest.approx(0.2 / 30, abs=1e-8)


@pytest.mark.parametrize("name", ["selu", "hardswish"])
def test_a_kink_does_not_keep_dks_from_shaping(name):
    solution = solve(name, DKSTarget(), chain(50))
    assert max(map(abs, solution.residuals.values())) < 1e-9


def test_a_function_of_ones_own():
    named = solve("tanh", DKSTarget(), chain(50))
    own = solve(torch.tanh, DKSTarget(), chain(50))
    assert own.constants == pytest.approx(named.constants, rel=1e-9)
    with pytest.raises(AttributeError):
        own.constants = {}


def test_the_edge_of_chaos():
    tanh = solve("tanh", EOCTarget(), chain(3)).constants
    assert tanh == pytest.approx({"weight_variance": 2.153303, "bias_variance": 0.150965}, abs=1e-6)
    assert solve("relu", EOCTarget(), chain(3)).constants == {"weight_variance": 2.0, "bias_variance": 0.0}
    assert code_of(lambda: solve("softplus", EOCTarget(), chain(3)), InfeasibleError) == "no-edge-of-chaos"


@pytest.mark.parametrize("depth", [1, 5, 12])
def test_a_shallow_chain_does_not_reach_eta(depth):
    c = 0.0
    for _ in range(depth):
        c = _leaky_c(0.0, c)
    with pytest.raises(InfeasibleError, match=f"{c:.6f}") as caught:
        solve("leaky_relu", TATTarget(eta=0.9), chain(depth))
    assert caught.value.code == "eta-out-of-reach"
    solve("leaky_relu", TATTarget(eta=math.floor(c * 1e4) / 1e4), chain(depth))


def test_other_targets_that_cannot_be_met():
    with pytest.raises(InfeasibleError, match=r"1\.46694") as caught:
        solve("relu", DKSTarget(), chain(1))
    assert caught.value.code == "zeta-out-of-reach"
    assert code_of(lambda: solve("selu", TATTarget(), chain(50)), InfeasibleError) == "jump"
    assert code_of(lambda: solve("sigmoid", DKSTarget(30.0), chain(2)), InfeasibleError) == "zeta-out-of-reach"
    assert code_of(lambda: solve("hardshrink", DKSTarget(), chain(50)), InfeasibleError) == "jump"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: DKSTarget(1.0), "zeta"),
        (lambda: DKSTarget(math.nan), "zeta"),
        (lambda: TATTarget(eta=1.0), "eta"),
        (lambda: TATTarget(tau=0.0), "tau"),
        (lambda: chain(0), "depth"),
        (lambda: chain(10**30), "depth"),
        (lambda: chain("3"), "depth"),
        (lambda: residual(chain(1), 1.5), "shortcut"),
        (lambda: residual(chain(1), "a"), "shortcut"),
    ],
)
def test_values_out_of_range(make, code):
    assert code_of(make) == code


def test_a_network_without_nonlinear_layers():
    linear = SignalGraph((Node("input"), Node("affine", (0,)), Node("output", (1,))))
    assert code_of(lambda: solve("tanh", DKSTarget(), linear)) == "no-activation"
    assert code_of(lambda: solve("tanh", "dks", chain(3)), TypeError) == "target"
    assert code_of(lambda: solve("tanh", DKSTarget(), 3), TypeError) == "graph"


def doubling(y):
    return 2 * y


def test_parts_of_a_network():
    """The maximum is over the whole and every part with one way in and one way out."""
    assert series(chain(1), residual(chain(3), 0.8), chain(1)).maximum(doubling, 1.0) == pytest.approx(
        max(2 * (0.64 * 2 + 0.36 * 2 * 8), 8)
    )
    assert residual(chain(3), 0.8).maximum(doubling, 1.0) == 8  # the branch alone; the whole has 3.52
    nested = residual(series(chain(1), residual(chain(4), 0.9), chain(1)), 0.95)
    assert nested.maximum(doubling, 1.0) == 16  # the inner branch alone
    inner = residual(chain(2), 0.6)  # 0.36 + 0.64 · 4, and three layers after it
    assert residual(series(inner, chain(3)), 0.9).maximum(doubling, 1.0) == pytest.approx(8 * (0.36 + 0.64 * 4))
    assert residual(chain(2), 0.0).maximum(doubling, 1.0) == 4
    assert residual(chain(2), 1.0).maximum(lambda y: 0.1 + y, 0.0) == pytest.approx(0.2)


def test_a_graph_that_is_no_tree_of_branches():
    """Each layer takes the sum of all that came before, as in DenseNet."""
    nodes = [Node("input"), Node("affine", (0,))]
    outputs = [1]
    for _ in range(3):
        if len(outputs) > 1:
            nodes.append(Node("sum", tuple(outputs), weights=(1.0,) * len(outputs)))
        nodes.append(Node("nonlinear", (len(nodes) - 1,)))
        nodes.append(Node("affine", (len(nodes) - 1,)))
        outputs.append(len(nodes) - 1)
    nodes.append(Node("output", (len(nodes) - 1,)))
    x0 = 1.0
    x1 = doubling(x0)
    x2 = doubling((x0 + x1) / 2)
    x3 = doubling((x0 + x1 + x2) / 3)
    assert SignalGraph(tuple(nodes)).maximum(doubling, 1.0) == pytest.approx(x3)


def test_concatenation_mixes_by_shares():
    nodes = (
        Node("input"),
        Node("affine", (0,)),
        Node("nonlinear", (1,)),
        Node("concat", (1, 2), weights=(0.75, 0.25)),
        Node("output", (3,)),
    )
    assert SignalGraph(nodes).maximum(lambda y: y + 1, 0.0) == 1  # the one nonlinear layer alone
    assert (
        SignalGraph((*nodes[:4], Node("nonlinear", (3,)), Node("output", (4,)))).maximum(lambda y: y + 1, 0.0) == 1.25
    )


def test_dks_on_a_network_of_concatenations():
    nodes = [Node("input"), Node("affine", (0,))]
    for _ in range(5):
        last = len(nodes) - 1
        nodes += [Node("nonlinear", (last,)), Node("affine", (last + 1,))]
        nodes.append(Node("concat", (last, last + 2), weights=(0.6, 0.4)))
    solution = solve("tanh", DKSTarget(), SignalGraph((*nodes, Node("output", (len(nodes) - 1,)))))
    assert max(map(abs, solution.residuals.values())) < 1e-9


def test_sums_that_the_theory_has_no_rule_for():
    both = (
        Node("input"),
        Node("affine", (0,)),
        Node("nonlinear", (1,)),
        Node("affine", (2,)),
        Node("nonlinear", (3,)),
        Node("sum", (2, 4), "blocks.3", weights=(0.6, 0.8)),
        Node("output", (5,)),
    )
    with pytest.raises(UnsupportedModelError, match=r"blocks\.3") as caught:
        solve("leaky_relu", TATTarget(0.1), SignalGraph(both))
    assert caught.value.code == "sum-of-means"
    solve("tanh", DKSTarget(), SignalGraph(both))  # under DKS the means are zero
    dependent = (
        Node("input"),
        Node("affine", (0,)),
        Node("nonlinear", (1,)),
        Node("sum", (1, 2), "blocks.3", weights=(0.6, 0.8)),
        Node("output", (3,)),
    )
    with pytest.raises(UnsupportedModelError, match=r"blocks\.3") as caught:
        solve("tanh", DKSTarget(), SignalGraph(dependent))
    assert caught.value.code == "dependent-sum"
    without = replace(dependent[3], weights=(0.0, 1.0))  # a summand of weight 0 is none
    solve("tanh", DKSTarget(), SignalGraph((*dependent[:3], without, dependent[4])))


def test_the_slope_of_a_deep_residual_network_is_found_where_it_is_huge_at_the_other_end():
    for blocks, shortcut, zeta in ((33, 0.1, 1.5), (33, 0.6, 2.0), (50, 0.5, 1.5), (16, 0.5, 4.0)):
        graph = series(*[residual(chain(3), shortcut=shortcut) for _ in range(blocks)], chain(1))
        low, high = 1.0, zeta
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if graph.maximum(lambda y, s=middle: s * y, 1.0) < zeta else (low, middle)
        assert DKSTarget(zeta).slope(graph) == pytest.approx(low, abs=1e-15, rel=1e-12)


def test_parts_of_random_graphs_are_parts():
    """Every part's nodes take what is in the part, so that the maximum over parts can be taken at all."""
    for seed in range(400):
        draw = random.Random(seed)
        nodes = [Node("input")]
        for _ in range(draw.randint(3, 14)):
            inputs = tuple({draw.randrange(len(nodes)) for _ in range(draw.choice((1, 1, 2, 3)))})
            kind = "sum" if len(inputs) > 1 else draw.choice(("affine", "nonlinear"))
            nodes.append(Node(kind, inputs, weights=(1.0,) * len(inputs)))
        ends = [k for k in range(len(nodes)) if not any(k in node.inputs for node in nodes)]
        graph = SignalGraph((*nodes, Node("output", tuple(ends))))
        assert 0 <= graph.maximum(lambda y: y + 1.0, 0.0) <= graph.depth


def test_roots():
    assert rising_root(lambda x: x**9 - 0.5, 0.0, 1.0) == pytest.approx(0.5 ** (1 / 9), abs=1e-14)
    assert rising_root(lambda x: x + 1, 0.0, 1.0) == 0.0
    assert rising_root(lambda x: x - 2, 0.0, 1.0) == 1.0


def test_softplus_of_torch_is_the_one_of_the_theory():
    named = solve("softplus", TATTarget(), chain(9))
    assert solve(nn.Softplus(), TATTarget(), chain(9)).constants == named.constants
