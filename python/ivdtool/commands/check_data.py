"""`ivdtool check-data`."""

import json
import sys
from pathlib import Path

import click

from ivdtool.commands.options import log_option, model_option

__all__ = ["check_data"]


@click.command("check-data")
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@log_option
def check_data(dataset: Path, model: str | None, as_json: bool) -> int:
    """Look for what is wrong with a labelled BIDS DATASET: images, labels, participants.tsv.

    Prints one line per problem: the file, what is wrong, what to do. Distances between discs are
    compared with the skeleton of the model.

    Exit code: 0 nothing is wrong, 1 there are problems, 3 this is no BIDS data set.
    """
    from ivdtool.checks import check_dataset
    from ivdtool.inference import load_model

    skeleton = load_model(model, "cpu").info.skeleton
    with click.progressbar(
        length=1, label="images", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def show(done: int, count: int) -> None:
            bar.length = count
            bar.update(done - bar.pos)

        check = check_dataset(dataset, skeleton, show)
    problems = check.problems
    if as_json:
        document = {
            "images": check.images,
            "label_files": check.label_files,
            "problems": [
                {"kind": own.kind, "path": str(own.path), "what": own.what, "todo": own.todo}
                for own in problems
            ],
        }
        click.echo(json.dumps(document, indent=1))
    else:
        for own in problems:
            click.echo(str(own))
    files = f"{check.images} images, {check.label_files} with labels"
    click.echo(f"{files}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}", err=True)
    return 1 if problems else 0
