"""The `train` command: a recipe, data, and every training key of the recipe as an option."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ltmsearch.cli.options import OUTPUT, choice_option, field_option, flag, given_values, options_from
from ltmsearch.cli.shared_options import (
    AsJson,
    ClassMap,
    DataDir,
    Dataset,
    Device,
    Quiet,
    RecipeFile,
    TrainSplit,
    ValSplit,
    Verbose,
)
from ltmsearch.cli.terminal import is_main_process, print_json, results, watched
from ltmsearch.config.names import Head
from ltmsearch.config.network import NETWORK, NetworkKeys
from ltmsearch.config.overrides import override
from ltmsearch.config.recipe import KWARGS, NET, Recipe, load_recipe
from ltmsearch.config.settings import StudySettings
from ltmsearch.data.layout import DataLayout
from ltmsearch.io.yaml_models import check

ModelKwargs = Annotated[list[str] | None, field_option(StudySettings, KWARGS, panel=NETWORK, default=False)]

Init = Annotated[
    Path | None, typer.Option(metavar="FILE|RUN", help="Initial weights: a checkpoint, or a study's run directory.")
]
Teacher = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Checkpoint of the unmerged network, for distillation. (default: that of --init)"
    ),
]
HeadOption = Annotated[
    str | None,
    choice_option(
        Head,
        "Start of a classifier that the weights of --init lack or that has another number of classes: fitted to "
        "the features of the training images by logistic regression, or random; default: probe",
    ),
]


@options_from(Recipe, leave_out=NET, defaults=False)
def train(
    recipe: RecipeFile,
    data_dir: DataDir = None,
    dataset: Dataset = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    class_map: ClassMap = None,
    init: Init = None,
    teacher: Teacher = None,
    head: HeadOption = None,
    model_kwargs: ModelKwargs = None,
    device: Device = "auto",
    resume: Annotated[bool, flag("--resume", "Continue the training in the folder --out.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the training. (default: trainings/<study>-<trial>)",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **given: Any,
) -> None:
    """Train a recipe from scratch or from given weights; options override the recipe's keys. --resume continues.

    Example: ltmsearch train runs/my-study/recipes/4.yaml --data-dir my-images --epochs 30

    Several GPUs: torchrun --nproc-per-node 4 -m ltmsearch train …
    """
    changed, notes = _changed(load_recipe(recipe), given, model_kwargs)
    folder = out
    with watched(quiet=quiet, verbose=verbose, next_step=lambda: _next_step(folder)) as callbacks:
        from ltmsearch.training.options import TrainingOptions, default_folder
        from ltmsearch.training.summary import print_training, training_record
        from ltmsearch.training.trainer import train_recipe

        folder = out or default_folder(changed, recipe)
        options = TrainingOptions(
            out=folder,
            dataset=dataset or ("folder" if data_dir else "digits"),
            data_dir=data_dir,
            layout=DataLayout(train_split=train_split, val_split=val_split, class_map=class_map),
            init=init,
            teacher=teacher,
            head=cast(Head | None, head),
            device=device,
            resume=resume,
        )
        for note in notes:
            callbacks.note(note)
        result = train_recipe(changed, options, callbacks)
    if as_json and is_main_process():
        print_json(training_record(result))
    elif not quiet and is_main_process():
        print_training(results(), result)


def _changed(recipe: Recipe, given: dict[str, Any], model_kwargs: list[str] | None) -> tuple[Recipe, list[str]]:
    """The recipe with the values of a command line, and notes; arguments of the network are added to the recipe's."""
    keys = given_values(given)
    if model_kwargs:
        further = check(NetworkKeys, {KWARGS: model_kwargs}, "train").model_kwargs
        keys[KWARGS] = {**recipe.timm_kwargs, **further}
    return override(recipe, keys)


def _next_step(folder: Path | None) -> str:
    if folder is not None and folder.exists():
        return f"add --resume to the command to continue from {folder}"
    return "nothing has been written yet; repeat the command to start again"
