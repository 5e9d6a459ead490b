"""The command that searches: `run`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ltmsearch.cli import options
from ltmsearch.cli.app import OUTPUT, AsJson, DataDir, Dataset, Quiet, Verbose, app, flag, say
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.errors import InputError

START, SEARCH, PROXY, WORKERS, LATENCY = "Start", "Search", "Proxy", "Workers", "Latency"
"""Panels of the help; what stands in none comes first."""
_start, _search, _proxy, _workers, _latency, _output = (
    partial(typer.Option, rich_help_panel=panel) for panel in (START, SEARCH, PROXY, WORKERS, LATENCY, OUTPUT)
)
OF_RUN = ("config", "takeover", "quiet", "as_json", "verbose")
"""The options that are no settings of a study."""


@app.command()
def run(
    backbone: Annotated[str | None, options.backbone_option("timm name, e.g. mobilevit_s.")] = None,
    budget_gflops: Annotated[
        str | None,
        typer.Option(
            metavar="X|LOW-HIGH",
            help="Largest cost of one image at --img-size, in 1e9 multiply-adds; 1.1-1.4 serves all budgets between.",
        ),
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Largest latency of one batch at --img-size, in milliseconds on a device.")
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side in pixels that costs are counted for. (default: 224)")
    ] = None,
    config: Annotated[
        str | None, options.shipped_option("studies", "YAML file of settings, or a shipped study; options here win.")
    ] = None,
    data_dir: DataDir = None,
    dataset: Dataset = None,
    pretrained: Annotated[bool | None, flag("--pretrained", "Start from timm's weights.", panel=START)] = None,
    checkpoint: Annotated[
        str | None, _start(metavar="FILE", help="Start from the weights in this timm checkpoint.")
    ] = None,
    resume_from: Annotated[
        str | None,
        _start(
            metavar="RUN", help="Start from the shared weights and the front of this study, on whatever data or budget."
        ),
    ] = None,
    trials: Annotated[int | None, _search(help="Trained trials, baselines included. (default: 24)")] = None,
    timeout: Annotated[float | None, _search(help="Begin no new trial after this many seconds.")] = None,
    sampler: Annotated[
        str | None, options.one_of(options.SAMPLERS, "Of Optuna", default="auto: tpe", panel=SEARCH)
    ] = None,
    operator: Annotated[
        str | None, options.one_of(options.OPERATORS, "Merging operator", default="ltm", panel=SEARCH)
    ] = None,
    space: Annotated[
        str | None,
        options.shipped_option("search_spaces", "Search-space file. (default: its family's)", panel=SEARCH),
    ] = None,
    seed: Annotated[int | None, _search(help="Of everything random. (default: 0)")] = None,
    device: Annotated[
        str | None, options.such_as(options.DEVICES, "auto, cpu, cuda, cuda:1, … (default: auto)", panel=SEARCH)
    ] = None,
    precision: Annotated[
        str | None, options.one_of(options.PRECISIONS, "Number format", default="auto: measured", panel=SEARCH)
    ] = None,
    batch_size: Annotated[int | None, _proxy(help="Images per training step. (default: 16 or 32 on a CPU)")] = None,
    base_steps: Annotated[
        int | None, _proxy(help="Warm-up steps of the plain net alone. (default: 300 or 600 on a CPU)")
    ] = None,
    base_img_size: Annotated[
        int | None,
        _proxy(help="Side of the images at first; they grow to --proxy-img-size. (default: by family)"),
    ] = None,
    sandwich_steps: Annotated[
        int | None, _proxy(help="Warm-up steps in which subnets match the plain net. (default: 60 on a CPU)")
    ] = None,
    sandwich_subnets: Annotated[int | None, _proxy(help="Random subnets per such step. (default: 1)")] = None,
    warmup_lr: Annotated[
        float | None,
        _proxy(help="Peak learning rate of the warm-up. (default: by family; 0.0001 for trained weights)"),
    ] = None,
    proxy_img_size: Annotated[
        int | None, _proxy(help="Side of the images of trials. (default: 112 on a CPU, else --img-size)")
    ] = None,
    proxy_steps: Annotated[int | None, _proxy(help="Training steps of a trial. (default: 4 on a CPU)")] = None,
    proxy_lr: Annotated[float | None, _proxy(help="Learning rate of a trial. (default: 0.0002)")] = None,
    ib_beta: Annotated[
        float | None, _proxy(help="How sharply an image belongs to its nearest centroid in the IB loss. (default: 1)")
    ] = None,
    update_share: Annotated[
        float | None, _proxy(help="Share of a trial's change that the shared weights keep. (default: 0.25)")
    ] = None,
    calibration_images: Annotated[
        int | None, _proxy(help="Images that BatchNorm is recalibrated on. (default: 32 on a CPU)")
    ] = None,
    val_images: Annotated[
        int | None, _proxy(help="Validation images that score a trial. (default: 256 on a CPU)")
    ] = None,
    rescore_candidates: Annotated[int | None, _proxy(help="Trials scored again at the end. (default: 8)")] = None,
    rescore_images: Annotated[int | None, _proxy(help="Validation images of that. (default: 384 on a CPU)")] = None,
    staleness_power: Annotated[
        float | None,
        _proxy(help="How quickly that share falls with age, where several workers move the weights. (default: 0.5)"),
    ] = None,
    workers: Annotated[
        int | None, _workers(help="Trials at once: one in this process, several on Ray. (default: 1)")
    ] = None,
    ray_address: Annotated[
        str | None,
        _workers(metavar="ADDRESS", help="Of a Ray cluster, auto or HOST:PORT. (default: this machine alone)"),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, _workers(help="GPUs of each worker on Ray, fractions too. (default: an equal part of all)")
    ] = None,
    trial_timeout: Annotated[
        float | None,
        _workers(help="Give a trial up after this many seconds. (default: 20 times what is expected, 300 at least)"),
    ] = None,
    latency_device: Annotated[
        str | None,
        options.such_as(options.DEVICES[1:], "cpu, cuda, cuda:1, … (default: that of --device)", panel=LATENCY),
    ] = None,
    latency_batch: Annotated[int | None, _latency(help="Images per forward pass. (default: 1)")] = None,
    latency_runtime: Annotated[
        str | None, options.one_of(options.RUNTIMES, "What runs the net", default="torch", panel=LATENCY)
    ] = None,
    latency_dtype: Annotated[
        str | None, options.one_of(options.DTYPES, "Number format", default="fp32", panel=LATENCY)
    ] = None,
    latency_memory_format: Annotated[
        str | None, options.one_of(options.MEMORY_FORMATS, "Of images", default="channels_last", panel=LATENCY)
    ] = None,
    latency_threads: Annotated[int | None, _latency(help="On a CPU. (default: 1)")] = None,
    latency_profile: Annotated[
        str | None,
        _latency(
            metavar="FILE",
            help="Of ltmsearch profile, from this machine or another. (default: kept or timed here)",
        ),
    ] = None,
    study: Annotated[
        str | None, _output(metavar="NAME", help="Name of the study. (default: from backbone, budget and data)")
    ] = None,
    out: Annotated[str | None, _output(metavar="DIR", help="Run directory. (default: runs/<study>)")] = None,
    storage: Annotated[
        str | None,
        _output(
            metavar="URL",
            help="Database for the study, e.g. postgresql://USER@HOST/DATABASE (its password is better given as "
            "PGPASSWORD), or journal:///PATH/FILE on a shared disk. (default: study.db in the run directory)",
        ),
    ] = None,
    takeover: Annotated[
        bool, flag("--takeover", "Continue a study that another driver is at work on; that one ends.", panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search: which layers merge, and how much, under a budget. The same command continues a study.

    Example: ltmsearch run --backbone mobilevit_s --budget-gflops 1.2
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in OF_RUN}
    if data_dir is not None:
        given["data_dir"] = str(data_dir)
    settings = _settings(given, config)
    with watched(quiet=quiet, verbose=verbose, stopped=lambda: _how_to_go_on(settings.run_dir)) as callbacks:
        from ltmsearch.study import run_study

        result = run_study(settings, callbacks, takeover=takeover)
    if as_json:
        from ltmsearch.reporting.json_summary import study_document

        print_json(study_document(result))
    elif not quiet:
        from ltmsearch.reporting.findings import find
        from ltmsearch.reporting.html import PAGE
        from ltmsearch.reporting.pareto_plot import print_findings, print_front

        console = results()
        print_front(console, result.trials, axis=result.settings.axis)
        print_findings(console, find(result.trials, result.settings.axis.name))
        say(console, f"plots, tables and recipes: {result.folder}, all on one page in {result.folder / PAGE}")


def _settings(given: dict[str, Any], config: str | None) -> Any:
    from ltmsearch.config.settings import StudySettings

    if config is None:
        for alternatives in (("backbone",), ("budget_gflops", "budget_ms")):
            if not any(name in given for name in alternatives):
                options = " or ".join(f"--{name.replace('_', '-')}" for name in alternatives)
                raise InputError(f"{options} must be given, or --config FILE that holds it")
        return StudySettings.make("run", **given)
    from ltmsearch.io.presets import find_file
    from ltmsearch.io.yaml_models import load

    held = load(StudySettings, find_file("studies", config)).model_dump(exclude_unset=True)
    return StudySettings.make("run", **{**held, **given})


def _how_to_go_on(folder: Path) -> str:
    if folder.exists():
        return f"the same command continues, {folder} holds what is done"
    return "nothing is written yet, the same command begins again"
