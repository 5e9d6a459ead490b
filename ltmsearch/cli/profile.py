"""The command that times nets: `profile`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ltmsearch.cli.app import AsJson, app
from ltmsearch.errors import InputError


@app.command()
def profile(
    net: Annotated[str, typer.Argument(metavar="RECIPE|BACKBONE", help="Recipe file (YAML), or a timm name.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 1,
    runtime: Annotated[str, typer.Option(help="torch, compile or onnxruntime.")] = "torch",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    memory_format: Annotated[str, typer.Option(help="channels_last or contiguous.")] = "channels_last",
    threads: Annotated[int | None, typer.Option(help="On a CPU. (default: 1, the steadiest)")] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels. (default: 224, of a recipe its own)")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Width of the classifier. (default: 1000, of a recipe its own)")
    ] = None,
    operator: Annotated[str | None, typer.Option(help="Of a backbone: ltm, pool or tome. (default: ltm)")] = None,
    space: Annotated[str | None, typer.Option(help="Of a backbone: search-space file. (default: its family's)")] = None,
    again: Annotated[bool, typer.Option("--again", help="Of a backbone: time it anew, also if it was before.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Of a backbone: write the profile here as well, for --latency-profile.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time nets on a device: a recipe's beside the plain one, or so many of a backbone's that others can be predicted.

    What was timed of a backbone is kept as its profile on this device, and `run --budget-ms` finds it.

    Example: ltmsearch profile mobilevit_s --device cpu --batch-size 1
    """
    from ltmsearch.latency import profile_backbone, profile_recipe
    from ltmsearch.latency.show import print_nets, print_profile
    from ltmsearch.progress import ProgressBars

    asked: dict[str, Any] = {
        "device": device, "batch_size": batch_size, "runtime": runtime, "dtype": dtype,
        "memory_format": memory_format, "threads": threads, "img_size": img_size, "num_classes": num_classes,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    observer = ProgressBars(Console(stderr=True))
    try:
        if net.endswith((".yaml", ".yml")):
            if operator or space or again or out:
                raise InputError("--operator, --space, --again and --out go with a backbone, not with a recipe")
            target, record = profile_recipe(Path(net), given, observer)
        else:
            target, record = profile_backbone(
                net, operator or "ltm", space, given, again=again, out=out, observer=observer
            )
    finally:
        observer.close()
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    elif "nets" in record:
        print_nets(Console(), target, record["nets"])
    else:
        print_profile(Console(), record, target)
