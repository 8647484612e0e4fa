"""A short run of a network without batch statistics, alone or started by torchrun.

Statistics are of each process's part of a batch on CPUs (there is no synchronised normalisation
for them), so only a network without them can be compared with one process.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ivdtool.config import read_toml
from ivdtool.model import build_network
from ivdtool.training import loop
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.run import run_training


def build_without_norm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Every image of a batch is normalised by itself."""
    network = build_network(name, arguments)
    for module in list(network.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(module, child, nn.GroupNorm(1, layer.num_features))
    return network


if __name__ == "__main__":
    dataset, config, run = map(Path, sys.argv[1:])
    loop.build_network = build_without_norm  # type: ignore[attr-defined]
    run_training([dataset], read_toml(TrainingConfig, config), run, device="cpu", threads=1)
