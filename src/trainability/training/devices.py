"""Devices, precision and processes, all of which are Lightning Fabric's."""

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_on(
    device: str = "cpu", *, devices: int = 1, nodes: int = 1, strategy: str = "auto", precision: str = "32-true"
) -> "Fabric":
    """Lightning Fabric for a kind of device; ``"cuda:1"`` names one.

    The strategy ``"fsdp"`` is PyTorch's ``fully_shard`` (FSDP2) by Fabric's ``ModelParallelStrategy``, which runs on a
    CPU too.
    """
    import lightning_fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of every process that starts
    kind, _, index = device.partition(":")
    chosen: Any = strategy
    if strategy == "fsdp":
        from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

        from trainability.training.sharding import shard

        chosen = ModelParallelStrategy(shard, data_parallel_size=devices * nodes, tensor_parallel_size=1)
    options: dict[str, Any] = {"num_nodes": nodes, "strategy": chosen, "precision": precision}
    return lightning_fabric.Fabric(accelerator=kind, devices=[int(index)] if index else devices, **options)


def launched() -> bool:
    """Return True where a launcher or the environment has told this process of several hosts where it belongs."""
    from lightning_fabric.plugins.environments.lsf import LSFEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    launchers = (LSFEnvironment, SLURMEnvironment, TorchElasticEnvironment)
    return "MASTER_ADDR" in os.environ or any(launcher.detect() for launcher in launchers)
