"""The `export` command."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ltmsearch.cli.options import flag
from ltmsearch.cli.shared_options import AsJson, ClassMap, DataDir, Dataset, Quiet, TrainSplit, ValSplit, Verbose
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.data.layout import DataLayout
from ltmsearch.io.console_tables import print_line

RunOrTraining = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a study, or a training's folder.")]

_of_study = partial(typer.Option, rich_help_panel="Trials of a study")
Trial = Annotated[int | None, _of_study(metavar="INT", help="Export this trial.")]
Top = Annotated[
    int | None,
    _of_study(metavar="INT", help="Export this many of the front's best. (default: the recommended trial)", min=1),
]
UnderGflops = Annotated[
    float | None, _of_study(metavar="FLOAT", help="Export the best of the front up to this many GFLOPs per image.")
]
UnderMs = Annotated[
    float | None,
    _of_study(
        metavar="FLOAT",
        help="Export the best of the front up to this latency in milliseconds, if the study has a latency budget.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights to export. (default: RUN/best.safetensors)",
        rich_help_panel="Trained weights of a training",
    ),
]
Int8 = Annotated[
    bool, flag("--int8", "Write an int8 copy of the ONNX file too, and compare the answers of both on labelled images.")
]


def export(
    run: RunOrTraining,
    trial: Trial = None,
    top: Top = None,
    under_gflops: UnderGflops = None,
    under_ms: UnderMs = None,
    checkpoint: Checkpoint = None,
    weights: Annotated[bool, flag("--weights", "Write the weights too, as a safetensors folder for timm.")] = False,
    onnx: Annotated[bool, flag("--onnx", "Write an ONNX file too, verified in onnxruntime.")] = False,
    int8: Int8 = False,
    data_dir: DataDir = None,
    dataset: Dataset = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    class_map: ClassMap = None,
    program: Annotated[bool, flag("--program", "Write a torch.export program too (.pt2).")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write recipes, and on request weights and programs, to RUN/export/<trial>/ (for a training: to RUN/export/).

    Every file is loaded again and compared with the network. Options of the data are for --int8,
    which takes the data of the study without them.

    Example: ltmsearch export runs/my-study --under-gflops 1.15 --weights --onnx
    """
    next_step = "complete files remain; repeat the command to write all files again"
    layout = DataLayout(train_split=train_split, val_split=val_split, class_map=class_map)
    with watched(quiet=quiet, verbose=verbose, next_step=lambda: next_step) as callbacks:
        from ltmsearch.export import export_run

        files = export_run(
            run,
            trial=trial,
            top=top,
            under_gflops=under_gflops,
            under_ms=under_ms,
            checkpoint=checkpoint,
            weights=weights,
            onnx=onnx,
            int8=int8,
            dataset=dataset,
            data_dir=data_dir,
            layout=layout if layout != DataLayout() else None,
            program=program,
            callbacks=callbacks,
        )
    if as_json:
        print_json([file.as_dict() for file in files])
    elif not quiet:
        for file in files:
            print_line(results(), f"{file.file}  {_size(file.bytes)}  {file.check}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
