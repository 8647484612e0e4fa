"""What makes a folder of labels a BIDS derivative: its description, and what is not BIDS in it."""

import json
from collections.abc import Sequence
from pathlib import Path

from ivdtool import __version__
from ivdtool.files import atomic_write

__all__ = ["describe_derivatives"]

NOT_BIDS = "manifest*\nsummary*\ndiscs*\n*.log\n"


def describe_derivatives(output: Path, datasets: Sequence[Path]) -> None:
    """Write dataset_description.json and .bidsignore.

    Raises:
        UsageError: they cannot be written.
    """
    description = {
        "Name": "Intervertebral disc labels",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "ivdtool",
                "Version": __version__,
                "Description": "Discs found and named by `ivdtool batch`",
            }
        ],
        "SourceDatasets": [{"URL": dataset.resolve().as_uri()} for dataset in datasets],
    }
    with atomic_write(output / "dataset_description.json") as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    with atomic_write(output / ".bidsignore") as temporary:
        temporary.write_text(NOT_BIDS, encoding="utf-8")
