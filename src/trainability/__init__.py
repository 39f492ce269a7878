"""See whether information gets through a deep network, learn why it does not, and make it get through.

>>> import trainability as tr
>>> sorted(tr.__all__)
['DKS', 'EOC', 'Flow', 'IC', 'ICLayer', 'Init', 'LBE', 'Normalize', 'Residual', 'SELU', 'Selection', 'TAT',
 'TrainabilityError', 'UnsupportedModelError', 'Verdict', 'WeightLayout', 'apply_', 'batch_entropy', 'compare',
 'diagnose', 'differential_entropy', 'landscape', 'measure', 'neuron_entropy', 'predict', 'register_weight_layer',
 'select']
"""

from typing import TYPE_CHECKING

from trainability._lazy import lazily

if TYPE_CHECKING:
    from trainability.diagnosis.verdict import Verdict, diagnose
    from trainability.entropy import batch_entropy, differential_entropy, neuron_entropy
    from trainability.errors import TrainabilityError, UnsupportedModelError
    from trainability.experiments.comparing import compare
    from trainability.flow import Flow, measure
    from trainability.introspect.select import Selection, select
    from trainability.introspect.weight_layers import WeightLayout, register_weight_layer
    from trainability.lbe.module import LBE
    from trainability.nn.ic import ICLayer
    from trainability.remedies import DKS, EOC, IC, SELU, TAT, Init, Normalize, Residual, apply_
    from trainability.signal import predict
    from trainability.surface.measurement import landscape

__version__ = "0.1.0"

__all__ = [
    "DKS",
    "EOC",
    "IC",
    "LBE",
    "SELU",
    "TAT",
    "Flow",
    "ICLayer",
    "Init",
    "Normalize",
    "Residual",
    "Selection",
    "TrainabilityError",
    "UnsupportedModelError",
    "Verdict",
    "WeightLayout",
    "apply_",
    "batch_entropy",
    "compare",
    "diagnose",
    "differential_entropy",
    "landscape",
    "measure",
    "neuron_entropy",
    "predict",
    "register_weight_layer",
    "select",
]

# The command line answers without loading torch.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "diagnosis.verdict": ("Verdict", "diagnose"),
        "entropy": ("batch_entropy", "differential_entropy", "neuron_entropy"),
        "errors": ("TrainabilityError", "UnsupportedModelError"),
        "experiments.comparing": ("compare",),
        "flow": ("Flow", "measure"),
        "introspect.select": ("Selection", "select"),
        "introspect.weight_layers": ("WeightLayout", "register_weight_layer"),
        "lbe.module": ("LBE",),
        "nn.ic": ("ICLayer",),
        "remedies": ("DKS", "EOC", "IC", "SELU", "TAT", "Init", "Normalize", "Residual", "apply_"),
        "signal": ("predict",),
        "surface.measurement": ("landscape",),
    },
)
