"""Planning what DKS, TAT and EOC change in a model: weights, normalization, sums and activations."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainability.errors import ArgumentError, UnsupportedModelError
from trainability.introspect.activations import is_nonlinearity
from trainability.introspect.norms import BATCH_NORM_OPERATIONS
from trainability.introspect.rewrite import RewrittenForward, Traced, replace_module, trace
from trainability.introspect.run import observing
from trainability.introspect.select import Where, select
from trainability.introspect.torch_private import DropoutNd, RunningNorm
from trainability.introspect.weight_layers import matrices, mean_fan_in
from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.weighted_sum import WeightedSum
from trainability.remedies.changes import Change, Changes, Plan
from trainability.remedies.initialization.weights import (
    check_delta,
    fill,
    fill_delta,
    scaled_uniform_orthogonal,
    weight_std,
)
from trainability.remedies.shaping import Shaping
from trainability.remedies.shaping.check import FACTOR
from trainability.remedies.shaping.regions import Region, regions
from trainability.signal import (
    DKSTarget,
    EOCTarget,
    InfeasibleError,
    Node,
    SignalGraph,
    Solution,
    Target,
    TATTarget,
    q_map,
    q_slope,
    solve,
)
from trainability.signal.propagate import propagate
from trainability.signal.reading import read_recorded


class Shaper:
    """Plans the changes of one remedy to one model."""

    def __init__(
        self,
        remedy: Shaping,
        model: nn.Module,
        where: Where | None,
        inputs: Any,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        if inputs is None:
            raise ArgumentError(
                f"{type(remedy).__name__} reads the model off one call: apply_(model, remedy, inputs=x)",
                code="inputs-needed",
            )
        assert isinstance(remedy, DKSTarget | TATTarget | EOCTarget)
        self.target: Target = remedy
        self.remedy = remedy
        self.factors = factors or {}  # of weights that forward changes, to draw them with
        self.shaping = not isinstance(remedy, EOCTarget)
        self.model = model
        self.inputs = inputs
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self.changes: Changes = []
        self.draws: list[Callable[[], None]] = []  # those of the changes that draw weights
        self.scales: dict[str, tuple[float, float]] = {}  # of weights drawn: gain, and mean square of the biases
        self.chosen = None if where is None else set(select(model, where).paths)
        self.read, self.recording = read_recorded(model, inputs)
        self.graph = self._normalized(self._without_unselected(self.read))
        self._check_scales()

    def plan(self) -> Plan:
        """Weights, then structure: normalization, sums, activations."""
        solutions = self._solutions()
        self._check_means(solutions)
        if not self.shaping:
            self.graph.check_sums(zero_mean=False)
            self._check_sizes(solutions)
        if self.remedy.init is not None:
            self._plan_weights(solutions)
        self.draws = [draw for _, draw in self.changes]
        self._plan_batchnorm()
        self._plan_owners(solutions)
        self.expected = self._expected(solutions)
        self._note(solutions)
        return Plan(self.changes, self.skipped, tuple(self.notes))

    def _check_means(self, solutions: dict[int, Solution]) -> None:
        """Refuse where means that come to activations make the signal grow, which TAT takes to be of mean square 1."""
        if not isinstance(self.target, TATTarget):
            return
        nodes = [
            replace(n, weights=(1.0, 0.0))
            if n.kind == "affine"
            else replace(n, activation=solutions[id(n.activation)].shaped)
            if n.kind == "nonlinear"
            else replace(n, kind="pass", detail="")  # it is taken out
            if n.detail in BATCH_NORM_OPERATIONS
            else n
            for n in self.graph.nodes
        ]
        states = propagate(SignalGraph(tuple(nodes)), {"": (1.0, 0.5)}).states
        for node, state in zip(nodes, states, strict=False):
            if node.kind == "nonlinear" and self.graph.carries_mean(node) and not 1 / FACTOR < state.q < FACTOR:
                raise UnsupportedModelError(
                    node.path,
                    "its activation takes a value that has a mean, since an activation came before it and no weight "
                    "layer between, as in relu(x + f(x)) of ResNet v1. TAT takes the mean to be 0; here the mean "
                    f"square becomes {state.q:.3g} instead of 1, and grows from block to block. Use DKS, under which "
                    "means are 0; or put the activation before the addition (pre-activation order); or leave the "
                    "shortcuts out with shortcut=0",
                    code="mean-into-activation",
                )

    def _note(self, solutions: dict[int, Solution]) -> None:
        """Note what the result depends on and is not taken care of."""
        if len({solution.activation.leaky is None for solution in solutions.values()}) > 1:
            self.notes.append("each of several activations is solved as if all were like it, as the method has it")
        for node in self.read.nodes:
            given = self.recording.inputs.get(node.detail) if node.kind == "input" else None
            if given is None or not given.is_floating_point() or given.is_meta or not given.numel():
                continue
            q = float(given.detach().double().square().mean())
            if q > 0 and not 0.5 < q < 2:
                which = "the inputs" if len(self.recording.inputs) == 1 else f"the input {node.detail}"
                self.notes.append(
                    f"the mean square of {which} is {q:.3g}, where the theory takes 1: normalize the data, or use "
                    "trainability.data.pln.PLN; what comes after keeps the wrong size"
                )
        for path, module in self.model.named_modules():
            if isinstance(module, DropoutNd) and module.p > 0:
                self.skipped[path] = (
                    f"in training it multiplies the mean square by {1 / (1 - module.p):.3g}, which is not accounted for"
                    if module.p < 1
                    else "a dropout of 1 lets nothing through"
                )
        if not self.shaping:
            for solution in solutions.values():
                slope = solution.constants["weight_variance"] * q_slope(solution.activation)
                if slope > 1 + 1e-6:
                    self.notes.append(
                        f"with {solution.activation.name} q = 1 stays but repels: deviations grow by {slope:.3g} per "
                        "layer, so a deep network explodes or dies; use DKS or TAT, under which they do not"
                    )

    def _expected(self, solutions: dict[int, Solution]) -> SignalGraph:
        """The graph that is to be read off the model once it is changed."""
        nodes = []
        for node, read_node in zip(self.graph.nodes, self.read.nodes, strict=True):
            if node.kind == "nonlinear":
                nodes.append(replace(node, activation=solutions[id(node.activation)].shaped))
            elif node.kind == "sum" and not self._selected(node.path):
                nodes.append(read_node)
            elif read_node.detail in BATCH_NORM_OPERATIONS:
                nodes.append(replace(read_node, kind="pass"))
            else:
                nodes.append(read_node if read_node.kind == "nonlinear" else node)
        return SignalGraph(tuple(nodes))

    def _check_scales(self) -> None:
        """Constants and parameters that scale or shift the signal break Q(1) = 1, unless they do nothing."""
        for node in self.graph.nodes:
            does = (node.kind == "scale" and abs(abs(node.weights[0]) - 1) > 1e-3) or (
                node.kind == "shift" and node.weights[0] > 1e-6
            )
            if does and self._selected(node.path):
                what = f"multiplies the signal by {node.weights[0]:.3g}" if node.kind == "scale" else "adds a constant"
                raise UnsupportedModelError(
                    node.path,
                    f"its forward {what}, and the mean square of the signal would not stay 1; set what does it "
                    f"(a layer scale, an embedding) to {int(node.kind == 'scale')} first",
                    code="scaled-signal",
                )

    def _selected(self, path: str) -> bool:
        if self.chosen is None:
            return True
        parts = path.split(".")
        return any(".".join(parts[:n]) in self.chosen for n in range(1, len(parts) + 1))

    def _without_unselected(self, graph: SignalGraph) -> SignalGraph:
        """Activations that are not to be shaped count as linear: those not selected, and one that is the output."""
        taken = {i for node in graph.nodes[:-1] for i in node.inputs}
        ends = set(graph.nodes[-1].inputs) - taken  # a feature that is returned and used further is hidden
        nodes = []
        for k, node in enumerate(graph.nodes):
            reason = None
            if node.kind == "nonlinear":
                if k in ends and self.chosen is None:
                    reason = f"its {node.detail} is the output of the model, not a hidden layer"
                elif not self._selected(node.path):
                    reason = "not selected; counted as if it were linear"
            if reason is not None:
                self.skipped[node.path] = reason
            nodes.append(node if reason is None else replace(node, kind="pass"))
        return SignalGraph(tuple(nodes))

    def _normalized(self, graph: SignalGraph) -> SignalGraph:
        """With sums of weights whose squares add up to 1."""
        layers: list[int] = []  # weight layers on the longest way to each node
        nodes = []
        for node in graph.nodes:
            layers.append(max((layers[i] for i in node.inputs), default=0) + (node.kind == "affine"))
            weights = self._sum_weights(node, [layers[i] for i in node.inputs]) if node.kind == "sum" else node.weights
            nodes.append(replace(node, weights=weights))
        return SignalGraph(tuple(nodes))

    def _sum_weights(self, node: Node, layers: list[int]) -> tuple[float, ...]:
        """Weights whose squares add up to 1, the shortcut being the one summand with the fewest weight layers."""
        shortcut, weights = self.remedy.shortcut, node.weights
        if shortcut is not None and layers.count(min(layers)) == 1:
            size = math.hypot(*(w for w, n in zip(weights, layers, strict=True) if n > min(layers)))
            rest = math.sqrt(1 - shortcut**2) / (size or 1.0)
            return tuple(
                math.copysign(shortcut, w or 1.0) if n == min(layers) else rest * (w if size else 1.0)
                for w, n in zip(weights, layers, strict=True)
            )
        size = math.hypot(*weights)
        if not size:
            raise UnsupportedModelError(
                node.path, "all summands of its sum are multiplied by 0, so nothing comes through", code="empty-sum"
            )
        return tuple(w / size for w in weights)

    def _solutions(self) -> dict[int, Solution]:
        """The solution of every activation in the graph, by its identity."""
        found: dict[int, Solution] = {}
        for node in self.graph.nonlinear:
            phi = node.activation
            assert phi is not None
            if id(phi) in found:
                continue
            try:
                found[id(phi)] = solve(phi, self.target, self.graph)
            except InfeasibleError as error:
                raise InfeasibleError(
                    f"{phi.name}: {error}" if phi.name not in str(error) else str(error), code=error.code
                ) from error
        if not found:
            raise UnsupportedModelError("", "it has no hidden activation to shape", code="no-activation")
        return found

    def _plan_weights(self, solutions: dict[int, Solution]) -> None:
        layers = [node for node in self.graph.nodes if node.kind == "affine" and self._selected(node.path)]
        after = self._activation_before(solutions)
        for node in layers:
            owner, _, name = node.weight.rpartition(".")
            module = self.model.get_submodule(owner)
            weight = module._parameters.get("weight")
            if name != "weight" or weight is None or matrices(module) is None:
                raise UnsupportedModelError(
                    node.path,
                    f"{type(module).__name__} multiplies by {name!r}, which is of unknown layout or no parameter of "
                    "its own (a parametrization?), and cannot be initialized; keep the weights with init=None",
                    code="weight-layout",
                )
            before = weight_std(weight)
            if isinstance(self.target, EOCTarget):
                change, draw = _gaussian(owner, module, before, after[id(node)])
                self.scales[node.weight] = after[id(node)]["weight_variance"], after[id(node)]["bias_variance"]
            else:
                self.scales[node.weight] = 1.0, 0.0
                check_delta(owner, module)
                change = Change(owner, before, "orthogonal, scaled to keep the mean square", "weights drawn anew")
                draw = partial(fill_delta, module, scaled_uniform_orthogonal)
            factor = self.factors.get(node.weight, 1.0)
            if factor != 1:
                why = f"{change.why}; times {factor:.4g}, as its forward changes what it multiplies by"
                change, draw = replace(change, why=why), partial(_draw_times, draw, module, factor)
            self.changes.append((change, draw))

    def _activation_before(self, solutions: dict[int, Solution]) -> dict[int, dict[str, float]]:
        """For every affine node, by its identity, the variances of the activation that feeds it.

        Inputs have mean square 1 where an activation gives E φ², so the layers that they feed need other weights.
        """
        first = next(iter(solutions.values())).constants
        of_inputs = {**first, "weight_variance": 1 - first["bias_variance"]} if not self.shaping else first
        found: dict[int, dict[str, float]] = {}
        feeding: list[dict[str, float]] = []
        for node in self.graph.nodes:
            before = feeding[node.inputs[0]] if node.inputs else of_inputs
            if node.kind == "affine":
                found[id(node)] = before
            feeding.append(solutions[id(node.activation)].constants if node.kind == "nonlinear" else before)
        return found

    def _check_sizes(self, solutions: dict[int, Solution]) -> None:
        """Refuse sums of summands of different mean square, which at the edge of chaos differ before and after φ."""
        sizes: list[float] = []
        for node in self.graph.nodes:
            before = [sizes[i] for i in self.graph.summands(node)]
            if node.kind == "nonlinear":
                sizes.append(q_map(solutions[id(node.activation)].activation))
            elif node.kind == "sum":
                if max(before) - min(before) > 1e-6:
                    raise UnsupportedModelError(
                        node.path,
                        "it adds a value from before an activation to one from after it, whose mean squares differ at "
                        "the edge of chaos, so that no weights keep the sum's; use DKS or TAT, under which both are 1",
                        code="uneven-sum",
                    )
                sizes.append(before[0])
            else:
                sizes.append(before[0] if before and node.kind != "affine" else 1.0)

    def _plan_batchnorm(self) -> None:
        used = {node.path for node in self.read.nodes if node.kind == "normalize"}
        for path, module in self.model.named_modules():
            if isinstance(module, RunningNorm) and path in used:
                if self.remedy.batchnorm == "refuse":
                    raise UnsupportedModelError(
                        path,
                        f"{type(module).__name__} makes an output depend on the whole batch and undoes what "
                        f"{type(self.target).__name__} sets up, which makes it unnecessary; take it out with "
                        f"{type(self.target).__name__}(batchnorm='remove')",
                        code="batchnorm",
                    )
                # Some hold their activation as a child, which stays.
                children = OrderedDict(module.named_children())
                rest = nn.Sequential(children) if children else nn.Identity()
                change = Change(path, type(module).__name__, type(rest).__name__, "not needed, and not compatible")
                self.changes.append((change, partial(replace_module, self.model, module, rest)))
                used.discard(path)
        for node in self.read.nodes:
            if node.path in used and node.detail in BATCH_NORM_OPERATIONS:
                raise UnsupportedModelError(
                    node.path,
                    f"its forward calls {node.detail} as a function, which cannot be taken out; use a module",
                    code="batchnorm-function",
                )

    def _why(self) -> str:
        target = self.target
        if isinstance(target, DKSTarget):
            return f"DKS, zeta {target.zeta:g}"
        return f"TAT, eta {target.eta:g}, tau {target.tau:g}" if isinstance(target, TATTarget) else "EOC"

    def _plan_owners(self, solutions: dict[int, Solution]) -> None:
        """Activations that are modules are replaced; functions and sums are, by rewriting the forward around them."""
        owners: dict[str, list[Node]] = {}
        done: set[nn.Module] = set()
        for node in self.graph.nodes:
            module = self.model.get_submodule(node.path)
            whole = is_nonlinearity(module) or not [*module.children(), *module.parameters()]
            if not (node.kind == "sum" and self._selected(node.path)) and not (
                node.kind == "nonlinear" and self.shaping
            ):
                continue
            if not whole:
                owners.setdefault(node.path, []).append(node)
            elif module not in done:
                done.add(module)
                self._plan_module(node, module, solutions)
        for path, nodes in owners.items():
            self._plan_owner(path, nodes, solutions)

    def _plan_module(self, node: Node, module: nn.Module, solutions: dict[int, Solution]) -> None:
        substitute: nn.Module
        if node.kind == "sum":
            substitute = WeightedSum(node.weights)
        elif isinstance(module, ShapedActivation):
            raise UnsupportedModelError(node.path, "it is shaped already; undo that first", code="shaped-already")
        elif any(True for _ in module.parameters()):
            raise UnsupportedModelError(
                node.path,
                f"{type(module).__name__} has trained parameters; replace it by a fixed activation",
                code="learned-activation",
            )
        else:
            _check_module(node.path, module)
            substitute = _shaped(solutions[id(node.activation)], module)
        change = Change(
            node.path, type(module).__name__, f"{type(substitute).__name__}({substitute.extra_repr()})", self._why()
        )
        self.changes.append((change, partial(replace_module, self.model, module, substitute)))

    def _plan_owner(self, path: str, nodes: list[Node], solutions: dict[int, Solution]) -> None:
        """Put modules in the place of the functions and sums that the forward of one module computes itself."""
        module = self.model.get_submodule(path)
        traced = trace(self.model, path, self.inputs)
        # Those that stay are among what is found in forward, too.
        here = sorted(
            (k for k, n in enumerate(self.read.nodes) if n.path == path and n.kind in ("nonlinear", "sum")),
            key=lambda k: self.read.nodes[k].at,
        )
        wanted = {id(node) for node in nodes}
        children: dict[str, nn.Module] = {}
        for graph in traced.graphs.values():
            found = regions(module, graph, traced.constants)
            if not _alike(found, [self.read.nodes[k] for k in here]):
                raise UnsupportedModelError(
                    path,
                    f"its forward, as it can be traced, computes {_counted(found)}, where "
                    f"{_counted([self.read.nodes[k] for k in here])} were read off a call; make each a module of its "
                    "own, used once",
                    code="forward-not-understood",
                )
            functions = [r.function(traced.constants) if r.node.kind == "nonlinear" else None for r in found]
            put: dict[fx.Node, fx.Node] = {}
            names: dict[str, list[int]] = {}  # calls of one activation share a module
            for region, function, k in zip(found, functions, here, strict=True):
                node = self.graph.nodes[k]
                if id(node) not in wanted:
                    continue
                if node.kind == "sum":
                    name = f"weighted_sum_{sum(n.startswith('weighted_sum') for n in names)}"
                    names[name] = []
                    children.setdefault(name, WeightedSum(node.weights))
                else:
                    assert node.activation is not None
                    kind = node.activation.name if node.activation.name.isidentifier() else region.node.detail
                    known = names.setdefault(kind, [])
                    if id(node.activation) not in known:
                        known.append(id(node.activation))
                    number = known.index(id(node.activation))
                    name = f"shaped_{kind}" + (f"_{number}" if number else "")
                    if name not in children:
                        assert function is not None
                        children[name] = _shaped(solutions[id(node.activation)], function)
                region.replace(graph, name, put)
            graph.lint()
            if left := {str(n.target) for n in graph.nodes if n.op == "get_attr"} & set(traced.constants):
                raise UnsupportedModelError(
                    path,
                    f"its forward makes {len(left)} tensors, which a rewritten one would not; register them as buffers",
                    code="forward-makes-tensors",
                )
        for name, substitute in children.items():
            if hasattr(module, name):
                raise UnsupportedModelError(
                    path,
                    f"it has an attribute {name!r} already, the name of a module to be added; rename that",
                    code="name-taken",
                )
            kind = "sum" if isinstance(substitute, WeightedSum) else name.removeprefix("shaped_")
            self.changes.append(
                (
                    Change(f"{path}.{name}".lstrip("."), f"{kind} in forward", str(substitute), self._why()),
                    partial(_add, module, name, substitute),
                )
            )
        if children:
            last, make = self.changes[-1]
            self.changes[-1] = (last, partial(_rewrite, make, module, traced))


def _alike(found: list[Region], nodes: list[Node]) -> bool:
    """True where a traced forward computes what was read off a call of it."""
    z = torch.linspace(-3.3, 3.1, 17, dtype=torch.float64)
    if [region.node.kind for region in found] != [node.kind for node in nodes]:
        return False
    for region, node in zip(found, nodes, strict=True):
        a, b = region.node, node
        if a.kind == "sum" and not torch.allclose(torch.tensor(a.weights), torch.tensor(b.weights), rtol=1e-4):
            return False
        if a.activation is not None and b.activation is not None:
            with torch.no_grad():
                one, other = (phi.function(z.clone()) for phi in (a.activation, b.activation))
            if not torch.allclose(one, other, rtol=1e-6, atol=1e-9):
                return False
    return True


def _counted(found: list[Region] | list[Node]) -> str:
    kinds = [(item.node if isinstance(item, Region) else item).kind for item in found]
    return f"{kinds.count('nonlinear')} activations and {kinds.count('sum')} sums"


def _check_module(path: str, module: nn.Module) -> None:
    """Refuse an activation of one's own that is not the same function in training."""
    if type(module).__module__ == nn.modules.activation.__name__:
        return
    z = torch.linspace(-3, 3, 31)
    try:
        with observing(module):
            values = [module.train(training)(z.clone()) for training in (True, True, False)]
    except Exception:  # it wants another shape; what it does is compared once it is in place
        return
    same = all(isinstance(value, Tensor) and torch.equal(value, values[-1]) for value in values)
    if not same or [*module.buffers()]:
        raise UnsupportedModelError(
            path,
            f"{type(module).__name__} computes something else in training, or keeps buffers; replace it by a fixed one",
            code="learned-activation",
        )


def _add(module: nn.Module, name: str, child: nn.Module) -> None:
    child.train(module.training)
    module.add_module(name, child)


def _rewrite(before: Callable[[], None], module: nn.Module, traced: Traced) -> None:
    before()
    module.forward = RewrittenForward(module, traced)


def _draw_times(draw: Callable[[], None], module: nn.Module, factor: float) -> None:
    draw()
    weight = module._parameters["weight"]
    assert weight is not None
    weight.mul_(factor)


def _shaped(solution: Solution, function: Callable[[Tensor], Tensor]) -> ShapedActivation:
    constants = solution.constants
    own = None if "negative_slope" in constants else function
    return ShapedActivation(solution.activation.name, constants, own)


def _gaussian(
    path: str, module: nn.Module, before: str, constants: dict[str, float]
) -> tuple[Change, Callable[[], None]]:
    inputs = mean_fan_in(module)
    std, spread = math.sqrt(constants["weight_variance"] / inputs), math.sqrt(constants["bias_variance"])

    def draw() -> None:
        fill(module, lambda out, into: torch.randn(out, into) * std)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.normal_(bias, std=spread)

    words = f"std {std:.3g}, biases {spread:.3g}"
    return Change(path, before, words, f"weights drawn anew, fan-in {inputs:g}"), draw
