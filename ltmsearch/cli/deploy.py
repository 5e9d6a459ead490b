"""Commands that take a subnet out of a study or a training and into use: `export`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ltmsearch.cli.app import AsJson, app, say

RunOrTraining = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a study, or a training's folder.")]


@app.command()
def export(
    run: RunOrTraining,
    trial: Annotated[int | None, typer.Option(help="Of a study: this trial.")] = None,
    top: Annotated[int | None, typer.Option(help="Of a study: the best K of the front. (default: 1)", min=1)] = None,
    under_gflops: Annotated[
        float | None, typer.Option(help="Of a study: the best of the front up to this cost.")
    ] = None,
    under_ms: Annotated[
        float | None, typer.Option(help="Of a study with a latency budget: the best of the front up to this latency.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Of a training: these weights. (default: RUN/best.safetensors)")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also the weights, as a folder that timm opens (safetensors).")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also an ONNX file, compared in onnxruntime.")] = False,
    program: Annotated[bool, typer.Option("--program", help="Also a program of torch.export (.pt2).")] = False,
    as_json: AsJson = False,
) -> None:
    """Write recipes, on request weights and programs, into RUN/export/<trial>/, of a training into RUN/export/.

    Every file is opened again and compared with the net.

    Example: ltmsearch export runs/my-study --under-gflops 1.15 --weights --onnx
    """
    from ltmsearch.export import export_run
    from ltmsearch.progress import ProgressBars

    observer = ProgressBars(Console(stderr=True))
    try:
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
            observer=observer,
        )
    finally:
        observer.close()
    if as_json:
        typer.echo(json.dumps([file.as_dict() for file in files], indent=2, ensure_ascii=False))
        return
    for file in files:
        say(Console(), f"{file.file}  {_size(file.bytes)}  {file.check}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
