"""Kernel theory of deep networks: Q and C maps, networks as graphs, and solving for shaped activations. No training."""

from typing import TYPE_CHECKING

from trainability._lazy import lazily
from trainability.errors import InfeasibleError as InfeasibleError

if TYPE_CHECKING:
    from trainability.signal.activation import Activation as Activation, as_activation as as_activation
    from trainability.signal.gaussian import expectation as expectation
    from trainability.signal.graph import (
        Node as Node,
        SignalGraph as SignalGraph,
        chain as chain,
        residual as residual,
        series as series,
    )
    from trainability.signal.maps import (
        c_curvature as c_curvature,
        c_map as c_map,
        c_slope as c_slope,
        kernel as kernel,
        mean as mean,
        q_map as q_map,
        q_slope as q_slope,
    )
    from trainability.signal.prediction import Prediction as Prediction, measured as measured, predict as predict
    from trainability.signal.reading import read as read
    from trainability.signal.solving import Solution as Solution, solve as solve
    from trainability.signal.targets import (
        DKSTarget as DKSTarget,
        EOCTarget as EOCTarget,
        Target as Target,
        TATTarget as TATTarget,
    )

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
