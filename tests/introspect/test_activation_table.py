"""The one table of activations, against torch."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation

from trainability.introspect.activation_table import ALIASES, CALLED, CHOICES, OPERATIONS, TABLE, VARYING
from trainability.introspect.torch_private import operation_name
from trainability.nn.nonlinearity import nonlinearity_of
from trainability.signal.activation import as_activation, names
from trainability.signal.kinks import find_kinks

NAMED = [row for row in TABLE.values() if row.kinks is not None]
Z = torch.linspace(-8, 8, 1001, dtype=torch.float64)


def function_of(name: str):
    return getattr(F, name, None) or getattr(torch, name)


def test_the_table_needs_no_torch():
    code = "import sys, trainability.introspect.activation_table; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_has_no_activation_that_the_table_lacks():
    others = {"MultiheadAttention", "Softmax", "LogSoftmax", "Softmin", "Softmax2d"}
    assert {row.module for row in TABLE.values() if row.called} == set(activation.__all__) - others


@pytest.mark.parametrize("row", [row for row in NAMED if row.module], ids=lambda row: row.name)
def test_a_name_is_the_module_and_the_function_of_torch(row):
    phi = as_activation(row.name).function(Z)
    assert torch.allclose(phi, getattr(nn, row.module)()(Z), rtol=1e-10, atol=1e-12)
    if row.called:
        assert torch.allclose(phi, function_of(row.name)(Z), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("row", NAMED, ids=lambda row: row.name)
def test_kinks_are_where_they_are_found(row):
    def derivatives(z: Tensor, order: int) -> tuple[Tensor, ...]:
        return as_activation(row.name).derivatives(z, order)

    assert find_kinks(derivatives)[0] == pytest.approx(row.kinks, abs=1e-9)


def test_the_operations_are_those_that_a_call_is_recorded_as():
    class All(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            plain = [function_of(name)(x) for name in sorted(CALLED - VARYING - {"threshold"})]
            return [*plain, F.threshold(x, 0.1, 0.2), x.asinh(), x.atan(), x.erf(), x.sin()]

    program = torch.export.export(All(), (torch.randn(2, 3),), strict=False)
    recorded = {operation_name(node) for node in program.graph.nodes if node.op == "call_function"}
    assert recorded >= OPERATIONS


def test_names_are_known_and_choices_are_modules():
    assert set(names()) == {row.name for row in NAMED} | ALIASES.keys()
    for name in CHOICES:
        assert type(nonlinearity_of(name)).__name__ == TABLE[name].module
