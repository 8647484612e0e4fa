"""`ivdtool export`."""

from pathlib import Path

import click

from ivdtool.commands.options import log_option
from ivdtool.errors import UsageError

__all__ = ["export"]


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="MODEL.pt")
@click.option("--name", help="Name of the model; the file's stem by default.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings, TOML.")
@click.option(
    "--calibrate",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Data set on whose val split confidence and verdict are fitted; may be given repeatedly.",
)
@log_option
def export(
    checkpoints: tuple[Path, ...],
    output: Path,
    name: str | None,
    config_file: Path | None,
    calibrate: tuple[Path, ...],
) -> None:
    """Export CHECKPOINTS as a self-contained TorchScript model file.

    Of several, the model draws the mean of their heatmaps.
    """
    from ivdtool.config import read_toml
    from ivdtool.training.release import ReleaseConfig, release_model

    if output.suffix != ".pt":
        raise UsageError(f"{output}: a model is a TorchScript file; give a name in .pt")
    settings = ReleaseConfig() if config_file is None else read_toml(ReleaseConfig, config_file)
    release_model(checkpoints, output, name or output.stem, settings, calibrate)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
