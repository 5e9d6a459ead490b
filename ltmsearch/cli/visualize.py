"""The `visualize` command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ltmsearch.cli.options import given_values, options_from
from ltmsearch.cli.shared_options import AsJson, ImgSize, Quiet, RecipeFile, Verbose
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.config.network import IMAGE_KEYS
from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import InputError
from ltmsearch.io.console_tables import print_line


@options_from(Recipe, only=IMAGE_KEYS, defaults=False)
def visualize(
    recipe: RecipeFile,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Further images, so that --image *.jpg works.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE...", help="Image to draw. (default: built-in digits, if the recipe was found on them)"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of the recipe's network. (default: those next to the recipe, otherwise untrained ones)",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write to. (default: <recipe>-merges next to the recipe)"),
    ] = None,
    img_size: ImgSize = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Pixel of the network's input whose merged token is highlighted. (default: one in a large token)",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **given: Any,
) -> None:
    """Draw which patches of an image merge: one picture of all layers, and an HTML page with a slider.

    Example: ltmsearch visualize runs/my-study/recipes/4.yaml --image cat.jpg
    """
    place = None if at is None else _place(at)
    next_step = "complete pictures remain; repeat the command to draw all again"
    with watched(quiet=quiet, verbose=verbose, next_step=lambda: next_step) as callbacks:
        from ltmsearch.reporting.merges.visualize import visualize_recipe

        drawn = visualize_recipe(
            recipe,
            [*(image or []), *(more or [])],
            checkpoint=checkpoint,
            out=out,
            img_size=img_size,
            place=place,
            changes=given_values(given),
            callbacks=callbacks,
        )
    if as_json:
        print_json({"weights": drawn.weights, "notes": drawn.notes, "files": [str(file) for file in drawn.files]})
    elif not quiet:
        console = results()
        for line in (f"weights: {drawn.weights}", *(f"note: {note}" for note in drawn.notes), *map(str, drawn.files)):
            print_line(console, line)


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at must be two numbers X,Y, such as 112,80, but got {text!r}") from None
    return x, y
