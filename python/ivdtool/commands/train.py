"""`ivdtool train`."""

from pathlib import Path
from typing import Any

import click

from ivdtool.commands.options import data_option, device_option, log_option, threads_option
from ivdtool.errors import UsageError

__all__ = ["train"]


@click.command()
@data_option
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings, TOML.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--steps", type=click.IntRange(1), help="Overrides the settings' steps.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@device_option
@threads_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@log_option
def train(
    datasets: tuple[Path, ...],
    config_file: Path | None,
    output: Path,
    steps: int | None,
    resume: bool,
    device: str,
    threads: int | None,
    quiet: bool,
) -> None:
    """Train a network on BIDS data sets.

    participants.tsv gives the split by subject (train, val, test).
    """
    from dataclasses import replace

    from ivdtool.config import read_toml
    from ivdtool.training.loop import TrainingConfig
    from ivdtool.training.run import run_training

    if resume:
        if config_file is not None or steps is not None:
            raise UsageError("--resume goes on with the run's own settings; drop --config, --steps")
        config_file = output / "config.toml"
    config = TrainingConfig() if config_file is None else read_toml(TrainingConfig, config_file)
    if steps is not None:
        config = replace(config, optimiser=replace(config.optimiser, steps=steps))
    with click.progressbar(
        length=config.optimiser.steps, label="training", hidden=quiet, show_pos=True
    ) as bar:

        def report(step: int, metrics: Any) -> None:
            bar.label = f"training, loss {metrics['loss']:.4f}"
            bar.update(step - bar.pos)

        last = run_training(
            datasets,
            config,
            output,
            device=device,
            threads=threads,
            resume=resume,
            report=report,
        )
    click.echo(f"{last}; best by validation: {output / 'best.pt'}; figures: metrics.csv")
