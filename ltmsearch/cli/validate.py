"""The command that scores trained weights: `validate`."""

from pathlib import Path
from typing import Annotated

import typer

from ltmsearch.cli import options
from ltmsearch.cli.app import AsJson, DataDir, Dataset, QuietProgress, Verbose, app
from ltmsearch.cli.terminal import print_json, results, watched

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]


@app.command()
def validate(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Option(metavar="FILE", help="Weights of the recipe's network.")],
    data_dir: DataDir = None,
    dataset: Dataset = None,
    img_size: Annotated[int | None, typer.Option(help="Side of the images in pixels. (default: the recipe's)")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    device: Annotated[str, options.such_as(options.DEVICES, "auto, cpu, cuda, cuda:1, …")] = "auto",
    precision: Annotated[str, options.one_of(options.PRECISIONS, "Number format")] = "auto",
    val_images: Annotated[
        int | None, typer.Option(help="Score so many images. (default: all; of the built-in digits 1000)")
    ] = None,
    as_json: AsJson = False,
    quiet: QuietProgress = False,
    verbose: Verbose = False,
) -> None:
    """Score trained weights: top-1, top-5, loss, information terms, cost, parameters, speed.

    Example: ltmsearch validate recipe.yaml --checkpoint best.safetensors --data-dir photos
    """
    stopped = "nothing is written by this command, it can be run again"
    with watched(quiet=quiet, verbose=verbose, stopped=lambda: stopped) as callbacks:
        from ltmsearch.config.recipe import load_recipe
        from ltmsearch.training.validation import print_validation, validate_recipe

        record = validate_recipe(
            load_recipe(recipe),
            checkpoint=checkpoint,
            dataset=dataset,
            data_dir=data_dir,
            img_size=img_size,
            batch_size=batch_size,
            device=device,
            precision=precision,
            val_images=val_images,
            callbacks=callbacks,
        )
    if as_json:
        print_json(record.as_dict())
    else:
        print_validation(results(), record)
