"""The command that scores trained weights: `validate`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ltmsearch.cli.app import AsJson, DataDir, Dataset, app

Recipe = Annotated[Path, typer.Argument(help="Recipe file (YAML).")]


@app.command()
def validate(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Option(help="Weights of the recipe's network.")],
    data_dir: DataDir = None,
    dataset: Dataset = None,
    img_size: Annotated[int | None, typer.Option(help="Side of the images in pixels. (default: the recipe's)")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (measured), fp32 or bf16.")] = "auto",
    val_images: Annotated[
        int | None, typer.Option(help="Score so many images. (default: all; of the built-in digits 1000)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score trained weights: top-1, top-5, loss, information terms, cost, parameters, speed.

    Example: ltmsearch validate recipe.yaml --checkpoint best.safetensors --data-dir photos
    """
    from ltmsearch.progress import ProgressBars
    from ltmsearch.recipe import load_recipe
    from ltmsearch.validation import print_validation, validate_recipe

    observer = ProgressBars(Console(stderr=True))
    try:
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
            observer=observer,
        )
    finally:
        observer.close()
    if as_json:
        typer.echo(json.dumps(record.as_dict(), indent=2, ensure_ascii=False))
    else:
        print_validation(Console(), record)
