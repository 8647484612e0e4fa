"""What makes a folder of labels a BIDS derivative: its description, and what is not BIDS in it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ivdtool import __version__
from ivdtool.files import atomic_write

__all__ = ["describe_derivatives"]

NOT_BIDS = "manifest*\nsummary*\ndiscs*\n*.log\n"


def describe_derivatives(output: Path, datasets: Sequence[Path]) -> None:
    """Write dataset_description.json and .bidsignore where there are none.

    Those that are there stay: `output` may be a data set itself, or its user's own derivative.

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
    files = {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        ".bidsignore": NOT_BIDS,
    }
    for name, content in files.items():
        if not os.path.lexists(output / name):
            with atomic_write(output / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
