"""The command that draws merges: `visualize`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ltmsearch.cli.app import app, say
from ltmsearch.errors import InputError


@app.command()
def visualize(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Further images, so that --image *.jpg works.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Image file. (default: some built-in digits, if it was found on them)"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights of the recipe's network. (default: those beside the recipe, or else fresh ones)"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. (default: <recipe>-merges beside the recipe)")
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
) -> None:
    """Draw which patches of an image merge: a picture of all layers, and a page with a slider that needs no network.

    Example: ltmsearch visualize runs/my-study/recipes/4.yaml --image cat.jpg
    """
    from ltmsearch.progress import ProgressBars
    from ltmsearch.visualize import visualize_recipe

    place = None if at is None else _place(at)
    observer = ProgressBars(Console(stderr=True))
    try:
        drawn = visualize_recipe(
            recipe,
            [*(image or []), *(more or [])],
            checkpoint=checkpoint,
            out=out,
            img_size=img_size,
            place=place,
            observer=observer,
        )
    finally:
        observer.close()
    console = Console()
    say(console, f"weights: {drawn.weights}")
    for note in drawn.notes:
        say(console, f"note: {note}")
    for file in drawn.files:
        say(console, str(file))


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at must be two numbers, X,Y, such as 112,80, but got {text!r}") from None
    return x, y
