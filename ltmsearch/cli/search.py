"""Commands around a study: `run`, `front` and `dashboard`."""

from typing import Annotated, Any

import typer
from rich.console import Console

from ltmsearch.cli.app import AsJson, DataDir, Dataset, Run, app, say
from ltmsearch.errors import InputError


@app.command()
def run(
    backbone: Annotated[str | None, typer.Option(help="timm name, e.g. mobilevit_s.")] = None,
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
    data_dir: DataDir = None,
    dataset: Dataset = None,
    operator: Annotated[str | None, typer.Option(help="Merging operator: ltm, pool or tome. (default: ltm)")] = None,
    space: Annotated[
        str | None, typer.Option(help="Search-space file. (default: that of the backbone's family)")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trained trials, baselines included. (default: 24)")] = None,
    timeout: Annotated[float | None, typer.Option(help="Begin no new trial after this many seconds.")] = None,
    sampler: Annotated[str | None, typer.Option(help="auto, tpe, gp, nsga2 or random. (default: auto: tpe)")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. (default: 0)")] = None,
    pretrained: Annotated[bool | None, typer.Option("--pretrained", help="Start from timm's weights.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Start from the weights in this timm checkpoint.")] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Start from the shared weights and the front of this study, on whatever data or budget."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, … (default: auto)")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16. (default: auto: measured)")] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the study. (default: from backbone, budget and data)")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Run directory. (default: runs/<study>)")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database for the study, e.g. postgresql://USER@HOST/DATABASE; its password is better given as "
            "PGPASSWORD. (default: study.db in the run directory)",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file of settings, or a shipped study; options here win.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
    latency_device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, … (default: that of --device)", rich_help_panel="Latency"),
    ] = None,
    latency_batch: Annotated[
        int | None, typer.Option(help="Images per forward pass. (default: 1)", rich_help_panel="Latency")
    ] = None,
    latency_runtime: Annotated[
        str | None,
        typer.Option(help="torch, compile or onnxruntime. (default: torch)", rich_help_panel="Latency"),
    ] = None,
    latency_dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16. (default: fp32)", rich_help_panel="Latency")
    ] = None,
    latency_memory_format: Annotated[
        str | None,
        typer.Option(help="channels_last or contiguous. (default: channels_last)", rich_help_panel="Latency"),
    ] = None,
    latency_threads: Annotated[
        int | None, typer.Option(help="On a CPU. (default: 1)", rich_help_panel="Latency")
    ] = None,
    latency_profile: Annotated[
        str | None,
        typer.Option(
            help="File of ltmsearch profile, from this machine or another. (default: kept or timed here)",
            rich_help_panel="Latency",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images per training step (default: 16 or 32 on a CPU).", rich_help_panel="Proxy"),
    ] = None,
    base_steps: Annotated[
        int | None,
        typer.Option(
            help="Warm-up steps of the plain net alone (default: 300 or 600 on a CPU).", rich_help_panel="Proxy"
        ),
    ] = None,
    base_img_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images at first; they grow to --proxy-img-size (default: by family).",
            rich_help_panel="Proxy",
        ),
    ] = None,
    sandwich_steps: Annotated[
        int | None,
        typer.Option(
            help="Warm-up steps in which subnets match the plain net (default: 60 on a CPU).", rich_help_panel="Proxy"
        ),
    ] = None,
    sandwich_subnets: Annotated[
        int | None, typer.Option(help="Random subnets per such step. (default: 1)", rich_help_panel="Proxy")
    ] = None,
    warmup_lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate of the warm-up (default: by family; 0.0001 for trained weights).",
            rich_help_panel="Proxy",
        ),
    ] = None,
    proxy_img_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images of trials (default: 112 on a CPU, else --img-size).", rich_help_panel="Proxy"
        ),
    ] = None,
    proxy_steps: Annotated[
        int | None, typer.Option(help="Training steps of a trial (default: 4 on a CPU).", rich_help_panel="Proxy")
    ] = None,
    proxy_lr: Annotated[
        float | None, typer.Option(help="Learning rate of a trial. (default: 0.0002)", rich_help_panel="Proxy")
    ] = None,
    ib_beta: Annotated[
        float | None,
        typer.Option(
            help="How sharply an image belongs to its nearest centroid in the IB loss. (default: 1)",
            rich_help_panel="Proxy",
        ),
    ] = None,
    update_share: Annotated[
        float | None,
        typer.Option(
            help="Share of a trial's change that the shared weights keep. (default: 0.25)", rich_help_panel="Proxy"
        ),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(help="Images that BatchNorm is recalibrated on (default: 32 on a CPU).", rich_help_panel="Proxy"),
    ] = None,
    val_images: Annotated[
        int | None,
        typer.Option(help="Validation images that score a trial (default: 256 on a CPU).", rich_help_panel="Proxy"),
    ] = None,
    rescore_candidates: Annotated[
        int | None, typer.Option(help="Trials scored again at the end. (default: 8)", rich_help_panel="Proxy")
    ] = None,
    rescore_images: Annotated[
        int | None, typer.Option(help="Validation images of that (default: 384 on a CPU).", rich_help_panel="Proxy")
    ] = None,
) -> None:
    """Search: which layers merge, and how much, under a budget. The same command continues a study.

    Example: ltmsearch run --backbone mobilevit_s --budget-gflops 1.2
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in ("config", "quiet")}
    if data_dir is not None:
        given["data_dir"] = str(data_dir)
    settings = _settings(given, config)
    console = Console()
    from ltmsearch.findings import find
    from ltmsearch.page import PAGE
    from ltmsearch.progress import ProgressBars
    from ltmsearch.report import print_findings, print_front
    from ltmsearch.study import run_study

    try:
        result = run_study(settings, None if quiet else ProgressBars(console))
    except KeyboardInterrupt:
        say(Console(stderr=True), f"stopped; the same command continues, {settings.run_dir} holds what is done")
        raise typer.Exit(1) from None
    if not quiet:
        print_front(console, result.records, axis=settings.axis)
        print_findings(console, find(result.records, settings.axis.name))
        say(console, f"plots, tables and recipes: {result.folder}, all on one page in {result.folder / PAGE}")


def _settings(given: dict[str, Any], config: str | None) -> Any:
    from ltmsearch.settings import StudySettings

    if config is None:
        for names in (("backbone",), ("budget_gflops", "budget_ms")):
            if not any(name in given for name in names):
                options = " or ".join(f"--{name.replace('_', '-')}" for name in names)
                raise InputError(f"{options} must be given, or --config FILE that holds it")
        return StudySettings.make("run", **given)
    from ltmsearch.shipped import find_file
    from ltmsearch.yamlfile import load

    held = load(StudySettings, find_file("studies", config)).model_dump(exclude_unset=True)
    return StudySettings.make("run", **{**held, **given})


@app.command()
def front(run: Run, as_json: AsJson = False) -> None:
    """Print a study's front and what was learned of its layers, and write its tables, plots and report again.

    Example: ltmsearch front runs/mobilevit_s-ltm-1.2gflops-224-digits
    """
    from ltmsearch.findings import find
    from ltmsearch.records import TRIALS, front_table, read_trials
    from ltmsearch.report import print_findings, print_front
    from ltmsearch.results import write_tables_and_plots
    from ltmsearch.settings import SETTINGS, ResolvedSettings

    settings = ResolvedSettings.load(run / SETTINGS)
    records = read_trials(run / TRIALS)
    console = Console()
    from ltmsearch.progress import Notes

    write_tables_and_plots(run, settings, records, Notes(Console(stderr=True)))
    if as_json:
        typer.echo(front_table(records, settings.axis.name).to_json(orient="records", indent=2))
    else:
        print_front(console, records, axis=settings.axis)
        print_findings(console, find(records, settings.axis.name))


@app.command()
def dashboard(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8080,
) -> None:
    """Open optuna-dashboard on a study, also while it runs.

    Example: ltmsearch dashboard runs/my-study --port 8080
    """
    from ltmsearch.dashboard.server import serve_dashboard

    def tell(address: str) -> None:
        if host not in ("127.0.0.1", "::1", "localhost"):
            say(
                Console(stderr=True),
                "the dashboard asks for no password: all who reach it can change and delete studies",
            )
        say(Console(), f"dashboard of {run} on {address} (Ctrl-C ends it)")

    serve_dashboard(run, host=host, port=port, on_start=tell)
