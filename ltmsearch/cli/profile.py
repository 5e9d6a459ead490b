"""The `profile` command."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from ltmsearch.callbacks import Callbacks
from ltmsearch.cli.options import OUTPUT, completing, field_option, flag, options_from
from ltmsearch.cli.shared_options import AsJson, Device, Verbose
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.config.backbones import backbone_names
from ltmsearch.config.names import Engine
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError, not_among

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

Measured = tuple[dict[str, Any], Callable[[Console], None]]
"""A record for JSON, and what prints it."""
RUNTIMES = (*get_args(Engine), "all")
Runtime = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Runtime that executes the network; all: time a recipe in each that this machine has, and recommend one. "
        f"({', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}; default: torch)",
        show_default=False,
        autocompletion=completing(RUNTIMES),
    ),
]


@options_from(StudySettings, only=("model_kwargs", "registers", "readout"))
def profile(
    net: Network,
    device: Device = "auto",
    batch_size: Annotated[int, field_option(StudySettings, "latency_batch")] = 1,
    runtime: Runtime = "torch",
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
    if runtime not in RUNTIMES:
        raise not_among("--runtime", runtime, RUNTIMES)
    if not is_recipe and runtime == "all":
        raise InputError(f"--runtime all needs a recipe, but got {net!r}; profile a backbone in one runtime at a time")
    with watched(quiet=quiet, verbose=verbose, next_step=_next_step) as callbacks:
        if is_recipe:
            record, show = _of_recipe(Path(net), given, callbacks)
        else:
            record, show = _of_backbone(net, operator or "ltm", space, given, again, out, callbacks)
    if as_json:
        print_json(record)
    elif is_recipe or not quiet:
        show(results())


def _of_recipe(path: Path, target: dict[str, Any], callbacks: Callbacks) -> Measured:
    from ltmsearch.latency import profile_in_every_runtime, profile_recipe
    from ltmsearch.latency.console import print_nets, print_runtimes

    if target["runtime"] == "all":
        del target["runtime"]
        targets, record = profile_in_every_runtime(path, target, callbacks)
        return record, lambda console: print_runtimes(console, targets, record)
    measured, record = profile_recipe(path, target, callbacks)
    return record, lambda console: print_nets(console, measured, record["nets"])


def _of_backbone(
    net: str,
    operator: str,
    space: str | None,
    target: dict[str, Any],
    again: bool,
    out: Path | None,
    callbacks: Callbacks,
) -> Measured:
    from ltmsearch.latency import profile_backbone
    from ltmsearch.latency.console import print_profile

    measured, record = profile_backbone(net, operator, space, target, again=again, out=out, callbacks=callbacks)
    return record, lambda console: print_profile(console, record, measured)


def _next_step() -> str:
    return "no measurement has been saved; repeat the command"
