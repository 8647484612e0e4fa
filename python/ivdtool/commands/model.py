"""`ivdtool model`."""

import click

from ivdtool.commands.options import log_option

__all__ = ["show_model"]


@click.command("model")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@log_option
def show_model(model: str | None, as_json: bool) -> None:
    """Show what a model file (NAME or FILE) contains."""
    from ivdtool.inference import load_model
    from ivdtool.modelfile import model_path
    from ivdtool.reports import describe_model

    loaded = load_model(model, "cpu")
    if as_json:
        click.echo(loaded.info.to_json())
    else:
        click.echo(describe_model(loaded.info, loaded.sha256, model_path(model)))
