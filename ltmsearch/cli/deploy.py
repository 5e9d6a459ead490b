"""Commands that take a schedule out of a study and into use: `export`."""

from typing import Annotated

import typer
from rich.console import Console

from ltmsearch.cli.app import Run, app, say


@app.command()
def export(
    run: Run,
    trial: Annotated[int | None, typer.Option(help="This trial.")] = None,
    top: Annotated[int | None, typer.Option(help="The best K of the front.", min=1)] = None,
    under_gflops: Annotated[float | None, typer.Option(help="The best of the front up to this cost.")] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Also the subnet's weights, as safetensors.")] = False,
) -> None:
    """Write recipes, and on request weights, of chosen trials into RUN/export/<trial>/; without a choice the best.

    Example: ltmsearch export runs/my-study --under-gflops 1.15 --weights
    """
    from ltmsearch.export import export_trials

    for path in export_trials(run, trial=trial, top=top, under_gflops=under_gflops, weights=weights):
        say(Console(), str(path))
