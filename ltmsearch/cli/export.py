"""Commands that take a subnet out of a study or a training and into use: `export`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ltmsearch.cli.app import AsJson, Quiet, Verbose, app, flag, say
from ltmsearch.cli.terminal import print_json, results, watched

RunOrTraining = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a study, or a training's folder.")]

_of_study = partial(typer.Option, rich_help_panel="Of a study")


@app.command()
def export(
    run: RunOrTraining,
    trial: Annotated[int | None, _of_study(help="This trial.")] = None,
    top: Annotated[int | None, _of_study(help="The best K of the front. (default: 1)", metavar="K", min=1)] = None,
    under_gflops: Annotated[float | None, _of_study(help="The best of the front up to this cost.")] = None,
    under_ms: Annotated[
        float | None, _of_study(help="The best of the front up to this latency, where it had a latency budget.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="These weights. (default: RUN/best.safetensors)", rich_help_panel="Of a training"
        ),
    ] = None,
    weights: Annotated[bool, flag("--weights", "Also the weights, as a folder that timm opens (safetensors).")] = False,
    onnx: Annotated[bool, flag("--onnx", "Also an ONNX file, compared in onnxruntime.")] = False,
    program: Annotated[bool, flag("--program", "Also a program of torch.export (.pt2).")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write recipes, on request weights and programs, into RUN/export/<trial>/, of a training into RUN/export/.

    Every file is opened again and compared with the net.

    Example: ltmsearch export runs/my-study --under-gflops 1.15 --weights --onnx
    """
    stopped = "files that are whole stay, the same command writes all again"
    with watched(quiet=quiet, verbose=verbose, stopped=lambda: stopped) as callbacks:
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
            program=program,
            callbacks=callbacks,
        )
    if as_json:
        print_json([file.as_dict() for file in files])
    elif not quiet:
        for file in files:
            say(results(), f"{file.file}  {_size(file.bytes)}  {file.check}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
