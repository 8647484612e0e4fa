"""`ivdtool train`."""

from pathlib import Path

import click

from ivdtool.commands.options import data_option, device_option, log_option, threads_option
from ivdtool.errors import UsageError

__all__ = ["train"]


@click.command()
@data_option
@click.option("--config", "settings", metavar="FILE|PRESET", help="TOML, or see `ivdtool presets`.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option(
    "--init",
    "initial",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Start with this checkpoint's weights; without --config, with its settings, too. Given "
    "more than once: with the mean of their weights.",
)
@click.option("--steps", type=click.IntRange(1), help="Overrides the settings' steps.")
@click.option("--seed", type=click.IntRange(0), help="Overrides the settings' seed.")
@click.option("--deterministic", is_flag=True, help="On GPUs, too: same run, same weights.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of prepared images, for any number of runs; slab-cache beside the run folder by "
    "default. May be deleted between runs.",
)
@click.option(
    "--workers", type=click.IntRange(0), help="Processes that draw batches; some on GPUs, else 0."
)
@device_option
@threads_option
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and the result only.")
@log_option
def train(
    datasets: tuple[Path, ...],
    settings: str | None,
    output: Path,
    initial: tuple[Path, ...],
    steps: int | None,
    seed: int | None,
    deterministic: bool,
    resume: bool,
    cache: Path | None,
    workers: int | None,
    device: str,
    threads: int | None,
    quiet: bool,
) -> None:
    """Train a network on BIDS data sets.

    participants.tsv gives the split by subject (train, val, test). On several GPUs or nodes:
    torchrun --nproc-per-node N -m ivdtool train ...
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from ivdtool.training.checkpoint import load_checkpoint
    from ivdtool.training.engine import is_first_process, require_extra
    from ivdtool.training.loop import TrainingConfig, settings_of
    from ivdtool.training.presets import read_settings
    from ivdtool.training.progress import Progress, terminal_progress
    from ivdtool.training.run import run_training

    require_extra()
    if resume and (settings, initial, steps, seed, deterministic) != (None, (), None, None, False):
        raise UsageError(
            "--resume goes on with the run's own settings; "
            "drop --config, --init, --steps, --seed and --deterministic"
        )
    if settings is not None:
        config = read_settings(settings)
    elif initial:
        config = settings_of(load_checkpoint(initial[0]), initial[0])
    else:
        config = TrainingConfig()
    optimiser = config.optimiser
    config = replace(
        config,
        seed=config.seed if seed is None else seed,
        deterministic=config.deterministic or deterministic,
        optimiser=replace(optimiser, steps=steps, epochs=None) if steps else optimiser,
    )
    shown = is_first_process() and not quiet
    with terminal_progress() if shown else nullcontext(Progress()) as progress:
        last = run_training(
            datasets,
            config,
            output,
            device=device,
            threads=threads,
            workers=workers,
            cache=cache,
            initial=initial,
            resume=resume,
            progress=progress,
        )
    if is_first_process():
        click.echo(
            f"{last}; best by validation: {output / 'best.pt'}; "
            f"figures: {output / 'metrics.csv'}, {output / 'curves.png'}"
        )
