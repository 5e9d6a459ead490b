"""The command that draws merges: `visualize`."""

from pathlib import Path
from typing import Annotated

import typer

from ltmsearch.cli.app import AsJson, Quiet, Verbose, app, say
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.errors import InputError


@app.command()
def visualize(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Further images, so that --image *.jpg works.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Image file. (default: some built-in digits, if it was found on them)"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of the recipe's network. (default: those beside the recipe, or else fresh ones)",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write to. (default: <recipe>-merges beside the recipe)"),
    ] = None,
    img_size: Annotated[int | None, typer.Option(help="Side of the images in pixels. (default: the recipe's)")] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Show the merged token that this place of the image goes to, in pixels as the net sees it. "
            "(default: a large one)",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw which patches of an image merge: a picture of all layers, and a page with a slider that needs no network.

    Example: ltmsearch visualize runs/my-study/recipes/4.yaml --image cat.jpg
    """
    place = None if at is None else _place(at)
    stopped = "pictures that are whole stay, the same command draws all again"
    with watched(quiet=quiet, verbose=verbose, stopped=lambda: stopped) as callbacks:
        from ltmsearch.reporting.merges.visualize import visualize_recipe

        drawn = visualize_recipe(
            recipe,
            [*(image or []), *(more or [])],
            checkpoint=checkpoint,
            out=out,
            img_size=img_size,
            place=place,
            callbacks=callbacks,
        )
    if as_json:
        print_json({"weights": drawn.weights, "notes": drawn.notes, "files": [str(file) for file in drawn.files]})
    elif not quiet:
        console = results()
        for line in (f"weights: {drawn.weights}", *(f"note: {note}" for note in drawn.notes), *map(str, drawn.files)):
            say(console, line)


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at must be two numbers, X,Y, such as 112,80, but got {text!r}") from None
    return x, y
