"""The dimensions that are features, followed through permutations."""

import torch
from torch import nn

from trainability.signal import features
from trainability.signal.operations import name_of


class _Permutations(nn.Module):
    def forward(self, x, y):
        several = x.permute(2, 0, -1, 1), x.movedim(1, -1), x.movedim((0, -1), (2, 1)), x.transpose(1, -2), x.mT, x.mH
        return *several, x.swapaxes(0, 1), x.swapdims(-1, 2), x.adjoint(), y.t(), y.T


def test_features_are_where_a_permutation_puts_them():
    inputs = torch.zeros(5, 7, 3, 4), torch.zeros(5, 7)  # no two dimensions of one size
    program = torch.export.export(_Permutations(), inputs, strict=False)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert {"permute", "movedim", "transpose", "numpy_T", "mT"} <= set(map(name_of, calls))
    for node in calls:
        for dim, size in enumerate(features.shape_of(node.args[0])):
            (moved,) = features.after(node, frozenset({dim}))
            assert features.shape_of(node)[moved] == size
