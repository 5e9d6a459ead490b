"""The command that times nets: `profile`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ltmsearch.cli import options
from ltmsearch.cli.app import OUTPUT, AsJson, Verbose, app, flag
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.errors import InputError

BACKBONE = "Of a backbone"
"""Panel of the help."""


@app.command()
def profile(
    net: Annotated[str, options.backbone_argument("Recipe file (YAML), or a timm name.", metavar="RECIPE|BACKBONE")],
    device: Annotated[str, options.such_as(options.DEVICES, "auto, cpu, cuda, cuda:1, …")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1)] = 1,
    runtime: Annotated[str, options.one_of(options.RUNTIMES, "What runs the net")] = "torch",
    dtype: Annotated[str, options.one_of(options.DTYPES, "Number format")] = "fp32",
    memory_format: Annotated[str, options.one_of(options.MEMORY_FORMATS, "Of images")] = "channels_last",
    threads: Annotated[int | None, typer.Option(help="On a CPU. (default: 1, the steadiest)")] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels. (default: 224, of a recipe its own)")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Width of the classifier. (default: 1000, of a recipe its own)")
    ] = None,
    operator: Annotated[
        str | None, options.one_of(options.OPERATORS, "Merging operator", default="ltm", panel=BACKBONE)
    ] = None,
    space: Annotated[
        str | None,
        options.shipped_option("search_spaces", "Search-space file. (default: its family's)", panel=BACKBONE),
    ] = None,
    again: Annotated[bool, flag("--again", "Time it anew, also if it was before.", panel=BACKBONE)] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the profile here as well, for --latency-profile.",
            rich_help_panel=BACKBONE,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[
        bool,
        flag("--quiet", "-q", "No progress; of a backbone, whose profile is kept, no table either.", panel=OUTPUT),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Time nets on a device: a recipe's beside the plain one, or so many of a backbone's that others can be predicted.

    What was timed of a backbone is kept as its profile on this device, and `run --budget-ms` finds it.

    Example: ltmsearch profile mobilevit_s --device cpu --batch-size 1
    """
    asked: dict[str, Any] = {
        "device": device, "batch_size": batch_size, "runtime": runtime, "dtype": dtype,
        "memory_format": memory_format, "threads": threads, "img_size": img_size, "num_classes": num_classes,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    of_recipe = net.endswith((".yaml", ".yml"))
    if of_recipe and (operator or space or again or out):
        raise InputError("--operator, --space, --again and --out go with a backbone, not with a recipe")
    stopped = "nothing is kept of what was timed, the same command begins again"
    with watched(quiet=quiet, verbose=verbose, stopped=lambda: stopped) as callbacks:
        from ltmsearch.latency import profile_backbone, profile_recipe
        from ltmsearch.latency.console import print_nets, print_profile

        if of_recipe:
            target, record = profile_recipe(Path(net), given, callbacks)
        else:
            target, record = profile_backbone(
                net, operator or "ltm", space, given, again=again, out=out, callbacks=callbacks
            )
    if as_json:
        print_json(record)
    elif of_recipe:
        print_nets(results(), target, record["nets"])
    elif not quiet:
        print_profile(results(), record, target)
