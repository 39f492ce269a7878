"""See whether information gets through a deep network, learn why it does not, and make it get through.

>>> import trainability as tr
>>> sorted(tr.__all__)
['DKS', 'EOC', 'Flow', 'IC', 'ICLayer', 'Init', 'LBE', 'Normalize', 'Residual', 'SELU', 'Selection', 'TAT',
 'TrainabilityError', 'UnsupportedModelError', 'Verdict', 'apply_', 'batch_entropy', 'diagnose',
 'differential_entropy', 'measure', 'neuron_entropy', 'predict', 'select']
"""

from trainability.diagnose import Verdict, diagnose
from trainability.entropy import batch_entropy, differential_entropy, neuron_entropy
from trainability.errors import TrainabilityError, UnsupportedModelError
from trainability.flow import Flow, measure
from trainability.kernels import predict
from trainability.layers import Selection, select
from trainability.lbe import LBE
from trainability.modules.ic import ICLayer
from trainability.remedies import DKS, EOC, IC, SELU, TAT, Init, Normalize, Residual, apply_

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
    "apply_",
    "batch_entropy",
    "diagnose",
    "differential_entropy",
    "measure",
    "neuron_entropy",
    "predict",
    "select",
]
