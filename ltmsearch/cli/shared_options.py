"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ltmsearch.cli.options import OUTPUT, field_option, flag
from ltmsearch.config.settings import StudySettings

DATA = "Data"
"""Panel of the help."""

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a study.")]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, e.g. of a study's recipes/ folder.")]
DataDir = Annotated[Path | None, field_option(StudySettings, "data_dir", panel=DATA)]
Dataset = Annotated[str | None, field_option(StudySettings, "dataset", panel=DATA)]
TrainSplit = Annotated[str | None, field_option(StudySettings, "train_split", panel=DATA)]
ValSplit = Annotated[str | None, field_option(StudySettings, "val_split", panel=DATA)]
ClassMap = Annotated[Path | None, field_option(StudySettings, "class_map", panel=DATA)]
ImgSize = Annotated[int | None, typer.Option(metavar="INT", help="Image side in pixels. (default: the recipe's)")]
Device = Annotated[str, field_option(StudySettings, "device")]
AsJson = Annotated[bool, flag("--json", "Print the result to standard output as one JSON document.", panel=OUTPUT)]
Quiet = Annotated[bool, flag("--quiet", "-q", "Print no progress and no table.", panel=OUTPUT)]
QuietProgress = Annotated[bool, flag("--quiet", "-q", "Print no progress.", panel=OUTPUT)]
Verbose = Annotated[
    bool, flag("--verbose", "-v", "Log decisions, timings and written files to standard error.", panel=OUTPUT)
]
