"""The `profile` command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ltmsearch.cli.options import OUTPUT, completing, field_option, flag, options_from
from ltmsearch.cli.shared_options import AsJson, Device, Verbose
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.config.backbones import backbone_names
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError

BACKBONE = "Profile of a backbone"
"""Panel of the help."""
OF_BACKBONES = "--model-kwargs, --registers, --readout, --operator, --space, --again and --out"
Network = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|BACKBONE",
        help="Recipe file (YAML), or a timm name.",
        autocompletion=completing(backbone_names),
    ),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the profile to this file too, for --latency-profile.", rich_help_panel=BACKBONE
    ),
]
ImgSize = Annotated[
    int | None, typer.Option(metavar="INT", help="Image side in pixels. (default: 224, or the recipe's)")
]
NumClasses = Annotated[
    int | None, typer.Option(metavar="INT", help="Number of classes. (default: 1000, or the recipe's)")
]
InChans = Annotated[
    int | None, typer.Option(metavar="INT", help="Input channels: 1, 3 or 4. (default: 3, or the recipe's)")
]


@options_from(StudySettings, only=("model_kwargs", "registers", "readout"))
def profile(
    net: Network,
    device: Device = "auto",
    batch_size: Annotated[int, field_option(StudySettings, "latency_batch")] = 1,
    runtime: Annotated[str, field_option(StudySettings, "latency_runtime")] = "torch",
    dtype: Annotated[str, field_option(StudySettings, "latency_dtype")] = "fp32",
    memory_format: Annotated[str, field_option(StudySettings, "latency_memory_format")] = "channels_last",
    threads: Annotated[int | None, field_option(StudySettings, "latency_threads")] = None,
    img_size: ImgSize = None,
    num_classes: NumClasses = None,
    in_chans: InChans = None,
    operator: Annotated[str | None, field_option(StudySettings, "operator", panel=BACKBONE)] = None,
    space: Annotated[str | None, field_option(StudySettings, "space", panel=BACKBONE)] = None,
    again: Annotated[bool, flag("--again", "Measure again even if a profile exists.", panel=BACKBONE)] = False,
    out: ProfileFile = None,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, flag("--quiet", "-q", "Print no progress; for a backbone, no table either.", panel=OUTPUT)
    ] = False,
    verbose: Verbose = False,
    **network: Any,
) -> None:
    """Measure latency on a device: of a recipe and its unmerged network, or of enough subnets to predict a backbone's.

    A backbone's profile is kept for this device, where `run --budget-ms` finds it.

    Example: ltmsearch profile mobilevit_s --device cpu --batch-size 1
    """
    target = {
        "device": device,
        "batch_size": batch_size,
        "runtime": runtime,
        "dtype": dtype,
        "memory_format": memory_format,
        "threads": threads,
        "img_size": img_size,
        "num_classes": num_classes,
        "in_chans": in_chans,
        **network,
    }
    given = {name: value for name, value in target.items() if value is not None}
    is_recipe = net.endswith((".yaml", ".yml"))
    if is_recipe and (operator or space or again or out or any(network.values())):
        raise InputError(f"{OF_BACKBONES} need a backbone, but got a recipe")
    with watched(quiet=quiet, verbose=verbose, next_step=_next_step) as callbacks:
        from ltmsearch.latency import profile_backbone, profile_recipe
        from ltmsearch.latency.console import print_nets, print_profile

        if is_recipe:
            measured, record = profile_recipe(Path(net), given, callbacks)
        else:
            measured, record = profile_backbone(
                net, operator or "ltm", space, given, again=again, out=out, callbacks=callbacks
            )
    if as_json:
        print_json(record)
    elif is_recipe:
        print_nets(results(), measured, record["nets"])
    elif not quiet:
        print_profile(results(), record, measured)


def _next_step() -> str:
    return "no measurement has been saved; repeat the command"
