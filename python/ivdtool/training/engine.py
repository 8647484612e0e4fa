"""Where and how training computes: one device, or several processes started by torchrun."""

import logging
import os
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch

from ivdtool.device import choose_device
from ivdtool.errors import UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Precision", "is_first_process", "require_extra", "start_fabric", "stop_fabric"]

Precision = Literal["bf16", "float32"]

EXTRA = ("lightning_fabric", "matplotlib", "rich", "tensorboard")
# how long processes wait for the first one, which alone prepares the images and validates
TIMEOUT = timedelta(hours=12)


def require_extra() -> None:
    """Check that the packages of the ``train`` extra are there.

    Raises:
        UsageError: one of them is missing.
    """
    for package in EXTRA:
        if find_spec(package) is None:
            raise UsageError(f'training needs the package {package}: pip install "ivdtool[train]"')


def start_fabric(
    device: str = "auto", precision: Precision = "bf16", deterministic: bool = False
) -> "Fabric":
    """Return what places networks, rounds and averages gradients, ready for use.

    Started by torchrun, every process joins the others and takes the device of its local rank
    (gradients are averaged by DDP, over NCCL or, on CPUs, gloo); otherwise there is one process
    and one device. All nodes must see the same files.

    Args:
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        precision: ``bf16`` computes the forward pass in bfloat16 where that is safe (AMP).
        deterministic: refuse operations whose result may differ from run to run. CPUs have none;
            on GPUs this is slower.

    Raises:
        UsageError: no CUDA device, fewer than processes, or a missing package.
    """
    require_extra()
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = choose_device(device).type
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    rounding: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if precision == "bf16" else "32-true"
    if _is_one_of_several():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if device == "cuda" and here > torch.cuda.device_count():
            raise UsageError(
                f"{here} processes on {torch.cuda.device_count()} CUDA devices; "
                "start torchrun with fewer --nproc-per-node"
            )
        fabric = Fabric(
            accelerator=device,
            devices=here,
            num_nodes=everywhere // here,
            strategy=DDPStrategy(timeout=TIMEOUT),
            precision=rounding,
        )
    else:
        # named, lest Fabric take the variables of a batch system for several processes
        environment = LightningEnvironment()
        fabric = Fabric(accelerator=device, devices=1, precision=rounding, plugins=environment)
    fabric.launch()
    return fabric


def stop_fabric(fabric: "Fabric") -> None:
    """Leave the other processes, once all have come so far."""
    fabric.barrier()
    if fabric.world_size > 1:
        torch.distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process is the one that writes and tells what happens."""
    return not _is_one_of_several() or os.environ["RANK"] == "0"


def _is_one_of_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
