"""`ivdtool presets`."""

import click

from ivdtool.commands.options import log_option

__all__ = ["presets"]


@click.command()
@click.argument("name", required=False)
@log_option
def presets(name: str | None) -> None:
    """List the training settings that come with the package, or print those of NAME.

    `ivdtool train --config NAME` trains with them; to change one, save what this prints as a file
    and edit that.
    """
    from ivdtool.training.presets import preset_names, preset_text

    if name is not None:
        click.echo(preset_text(name), nl=False)
        return
    for known in preset_names():
        click.echo(f"{known:<22}{preset_text(known).splitlines()[0].removeprefix('# ')}")
