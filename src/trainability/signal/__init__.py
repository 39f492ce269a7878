"""Kernel theory of deep networks: Q and C maps, networks as graphs, and solving for shaped activations. No training."""

from typing import TYPE_CHECKING

from trainability._lazy import lazily
from trainability.errors import InfeasibleError

if TYPE_CHECKING:
    from trainability.signal.activation import Activation, as_activation
    from trainability.signal.gaussian import expectation
    from trainability.signal.graph import Node, SignalGraph, chain, residual, series
    from trainability.signal.maps import c_curvature, c_map, c_slope, kernel, mean, q_map, q_slope
    from trainability.signal.prediction import Prediction, measured, predict
    from trainability.signal.reading import read
    from trainability.signal.solving import Solution, solve
    from trainability.signal.targets import DKSTarget, EOCTarget, Target, TATTarget

__all__ = [
    "Activation",
    "DKSTarget",
    "EOCTarget",
    "InfeasibleError",
    "Node",
    "Prediction",
    "SignalGraph",
    "Solution",
    "TATTarget",
    "Target",
    "as_activation",
    "c_curvature",
    "c_map",
    "c_slope",
    "chain",
    "expectation",
    "kernel",
    "mean",
    "measured",
    "predict",
    "q_map",
    "q_slope",
    "read",
    "residual",
    "series",
    "solve",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "activation": ("Activation", "as_activation"),
        "gaussian": ("expectation",),
        "graph": ("Node", "SignalGraph", "chain", "residual", "series"),
        "maps": ("c_curvature", "c_map", "c_slope", "kernel", "mean", "q_map", "q_slope"),
        "prediction": ("Prediction", "measured", "predict"),
        "reading": ("read",),
        "solving": ("Solution", "solve"),
        "targets": ("DKSTarget", "EOCTarget", "Target", "TATTarget"),
    },
)
