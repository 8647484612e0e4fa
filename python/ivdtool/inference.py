"""Load a model file and run its network: images in, heatmaps out."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ivdtool.device import choose_device
from ivdtool.errors import ModelError
from ivdtool.files import check_archive
from ivdtool.heatmaps import Heatmaps, cells_to_pixels
from ivdtool.metadata import ModelInfo
from ivdtool.modelfile import BATCH_SIZE, model_path
from ivdtool.preprocessing import Image

__all__ = ["INFO_FILE", "Model", "load_model"]

INFO_FILE = "ivdtool.json"  # inside the TorchScript archive


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model file.

    Attributes:
        info: what the file says of itself.
        sha256: of the file.
        network: TorchScript module, (N, 1, H, W) -> (N, V, H / stride, W / stride).
        device: where it runs.
        batch_size: most images that go through the network at once.
    """

    info: ModelInfo
    sha256: str
    network: Any
    device: torch.device
    batch_size: int = BATCH_SIZE

    def predict(self, images: Sequence[Image]) -> list[Heatmaps]:
        """Return the heatmaps of images of equal shape, in batches."""
        starts = range(0, len(images), self.batch_size)
        batches = (self._predict(images[start : start + self.batch_size]) for start in starts)
        return [heatmaps for batch in batches for heatmaps in batch]

    @torch.inference_mode()
    def _predict(self, images: Sequence[Image]) -> list[Heatmaps]:
        batch = torch.from_numpy(np.stack([image.pixels for image in images])[:, None])
        batch = batch.to(self.device, memory_format=torch.channels_last)
        # the profiling executor would compile anew for every image shape, which takes seconds
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            values = self.network(batch).float().cpu().contiguous().numpy()
        return [
            self._heatmaps(image, channels) for image, channels in zip(images, values, strict=True)
        ]

    def _heatmaps(self, image: Image, channels: npt.NDArray[np.float32]) -> Heatmaps:
        stride, grid = self.info.stride, image.grid
        cells = np.moveaxis(np.indices(channels.shape[1:]), 0, -1)
        # the network may guess a disc just outside the field of view; no scan shows it there
        channels[:, ~grid.shows(cells_to_pixels(cells, stride))] = 0
        spacing_mm = (grid.spacing_mm[0] * stride, grid.spacing_mm[1] * stride)
        return Heatmaps(channels, self.info.labels, stride, spacing_mm)


def load_model(
    model: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Model:
    """Load a model by name or file; the one inside the package by default.

    Args:
        model: name or .pt file.
        device: ``auto`` (CUDA when there), ``cpu`` or ``cuda``.
        threads: CPU threads of the network, for this process; torch decides when None.
        batch_size: most images of a scan that go through the network at once.

    Raises:
        ModelError: the file is missing, damaged or incompatible.
        UsageError: the device is not there.
    """
    path = model_path(model)
    place = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        content = path.read_bytes()
        names = check_archive(content)
        if "data.pkl" in names and "constants.pkl" not in names:  # which TorchScript has beside it
            raise ModelError(
                f"{path}: a checkpoint of training, not a model; make one of it with "
                "`ivdtool export`"
            )
        extra = {INFO_FILE: b""}
        # TorchScript executes what the archive holds, but no Python
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            network = torch.jit.load(io.BytesIO(content), map_location=place, _extra_files=extra)
        if not extra[INFO_FILE]:
            raise ValueError(f"no {INFO_FILE} in it")
        info = ModelInfo.from_json(extra[INFO_FILE])
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{path}: damaged or not an ivdtool model file ({reason})") from error
    return Model(info, hashlib.sha256(content).hexdigest(), network.eval(), place, batch_size)
