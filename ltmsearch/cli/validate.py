"""The `validate` command."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ltmsearch.cli.options import field_option, given_values, options_from
from ltmsearch.cli.shared_options import (
    DATA,
    AsJson,
    ClassMap,
    DataDir,
    Dataset,
    Device,
    ImgSize,
    QuietProgress,
    RecipeFile,
    TrainSplit,
    ValSplit,
    Verbose,
)
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.config.network import IMAGE_KEYS
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.config.settings import StudySettings
from ltmsearch.data.layout import DataLayout


@options_from(Recipe, only=IMAGE_KEYS, defaults=False)
def validate(
    recipe: RecipeFile,
    checkpoint: Annotated[Path, typer.Option(metavar="FILE", help="Weights of the recipe's network.")],
    data_dir: DataDir = None,
    dataset: Dataset = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    test_split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Test images, likewise. (default: test)", rich_help_panel=DATA),
    ] = None,
    class_map: ClassMap = None,
    img_size: ImgSize = None,
    batch_size: Annotated[int, typer.Option(metavar="INT", help="Images per forward pass.")] = 64,
    device: Device = "auto",
    precision: Annotated[str, field_option(StudySettings, "precision")] = "fp32",
    val_images: Annotated[
        int | None,
        typer.Option(metavar="INT", help="Number of images to score. (default: all; 1000 of the built-in digits)"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Images to score: validation or test. (default: validation, or else test)",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: QuietProgress = False,
    verbose: Verbose = False,
    **given: Any,
) -> None:
    """Score trained weights: top-1, top-5, agreement with the unmerged network, loss, information terms, cost, speed.

    Example: ltmsearch validate recipe.yaml --checkpoint best.safetensors --data-dir photos
    """
    next_step = "nothing has been written; repeat the command"
    with watched(quiet=quiet, verbose=verbose, next_step=lambda: next_step) as callbacks:
        from ltmsearch.training.validation import print_validation, validate_recipe

        record = validate_recipe(
            load_recipe(recipe).changed(given_values(given)),
            checkpoint=checkpoint,
            dataset=dataset,
            data_dir=data_dir,
            layout=DataLayout(train_split=train_split, val_split=val_split, test_split=test_split, class_map=class_map),
            img_size=img_size,
            batch_size=batch_size,
            device=device,
            precision=precision,
            val_images=val_images,
            split=split,
            callbacks=callbacks,
        )
    if as_json:
        print_json(asdict(record))
    else:
        print_validation(results(), record)
