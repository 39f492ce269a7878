"""The activations that are known by name: one row each, read by all that tells them apart. It needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ActivationRow:
    """One activation, at the settings that torch gives it.

    Attributes:
        name: of the function, in torch.nn.functional or torch.
        module: of the class in torch.nn; empty where there is none.
        operation: of ATen that it comes down to; empty where that is several, or another with settings.
        kinks: where it or one of its first two derivatives jumps; None where its form depends on what it is given, so
            that its name is not enough.
        called: whether torch has a function of that name, which a model may call in the place of the module.
        exact: whether its operation takes no settings, so that one call of it is this function.
        fixed: whether it is the same function of every single value: not learned, random, or of two values.
        gates: whether it may be meant to be multiplied with a signal: bounded, or a gate itself.
        choice: whether the models of the package take it as their nonlinearity.
    """

    name: str
    module: str = ""
    operation: str = ""
    kinks: tuple[float, ...] | None = ()
    called: bool = True
    exact: bool = False
    fixed: bool = True
    gates: bool = False
    choice: bool = False


_ROWS = (
    ActivationRow("relu", "ReLU", "relu", (0.0,), exact=True, choice=True),
    ActivationRow("leaky_relu", "LeakyReLU", "leaky_relu", (0.0,), choice=True),
    ActivationRow("tanh", "Tanh", "tanh", exact=True, gates=True, choice=True),
    ActivationRow("selu", "SELU", "selu", (0.0,), exact=True, choice=True),
    ActivationRow("elu", "ELU", "elu", (0.0,), choice=True),
    ActivationRow("gelu", "GELU", "gelu", choice=True),
    ActivationRow("silu", "SiLU", "silu", exact=True, choice=True),
    ActivationRow("softplus", "Softplus", "softplus", choice=True),
    ActivationRow("sigmoid", "Sigmoid", "sigmoid", exact=True, gates=True, choice=True),
    ActivationRow("celu", "CELU", "celu", (0.0,)),
    ActivationRow("glu", "GLU", kinks=None, fixed=False, gates=True),
    ActivationRow("hardshrink", "Hardshrink", "hardshrink", (-0.5, 0.5)),
    ActivationRow("hardsigmoid", "Hardsigmoid", "hardsigmoid", (-3.0, 3.0), exact=True, gates=True),
    ActivationRow("hardswish", "Hardswish", "hardswish", (-3.0, 3.0), exact=True),
    ActivationRow("hardtanh", "Hardtanh", "hardtanh", (-1.0, 1.0), gates=True),
    ActivationRow("logsigmoid", "LogSigmoid", "log_sigmoid", gates=True),
    ActivationRow("mish", "Mish", "mish", exact=True),
    ActivationRow("prelu", "PReLU", kinks=None, fixed=False),
    ActivationRow("relu6", "ReLU6", "relu6", (0.0, 6.0), exact=True),
    ActivationRow("rrelu", "RReLU", kinks=None, fixed=False),
    ActivationRow("softshrink", "Softshrink", "softshrink", (-0.5, 0.5)),
    ActivationRow("softsign", "Softsign", kinks=(0.0,), gates=True),
    ActivationRow("tanhshrink", "Tanhshrink"),
    ActivationRow("threshold", "Threshold", "threshold", kinks=None),
    # Functions of torch that are seldom meant as activations, and forms that have no function of their own.
    ActivationRow("asinh", "", "asinh", called=False, exact=True),
    ActivationRow("atan", "", "atan", called=False, exact=True, gates=True),
    ActivationRow("erf", "", "erf", called=False, exact=True, gates=True),
    ActivationRow("sin", "", "sin", called=False, gates=True),
    ActivationRow("bentid", called=False),
    ActivationRow("gelu_tanh", called=False),
    ActivationRow("identity", "Identity", called=False),
)
TABLE = {row.name: row for row in _ROWS}
ALIASES = {"swish": "silu"}

CHOICES = tuple(row.name for row in _ROWS if row.choice)
CALLED = {row.name for row in _ROWS if row.called}
EXACT = {row.name for row in _ROWS if row.exact}
VARYING = {row.name for row in _ROWS if not row.fixed}
GATES = {row.name for row in _ROWS if row.gates}
OPERATIONS = {row.operation for row in _ROWS if row.operation}
