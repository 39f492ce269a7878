"""Normalizations: the modules, and the ATen operations that their calls come down to."""

from torch import nn

from trainability.introspect.torch_private import RunningNorm

NORMS = (RunningNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# Per channel, over the batch or the places, in evaluation by running statistics.
BATCH_NORM_OPERATIONS = {"batch_norm", "instance_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"}
NORM_OPERATIONS = BATCH_NORM_OPERATIONS | {
    *("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "rms_norm"),
}
