"""Commands on a study that is there: `front` and `dashboard`."""

from typing import Annotated

import typer
from rich.console import Console

from ltmsearch.cli.app import AsJson, Quiet, RunFolder, app, say
from ltmsearch.cli.terminal import print_json, results


@app.command()
def front(run: RunFolder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Print a study's front and what was learned of its layers, and write its tables, plots and report again.

    While a driver is at work on the study nothing is written.

    Example: ltmsearch front runs/mobilevit_s-ltm-1.2gflops-224-digits
    """
    from ltmsearch.callbacks import Callbacks
    from ltmsearch.cli.progress import Notes
    from ltmsearch.io.files import refuse_links_outward
    from ltmsearch.reporting.findings import find
    from ltmsearch.reporting.json_summary import front_rows
    from ltmsearch.reporting.pareto_plot import print_findings, print_front
    from ltmsearch.reporting.write import write_tables_and_plots
    from ltmsearch.search.lease import who_drives
    from ltmsearch.search.run import Run

    refuse_links_outward(run)
    study = Run.open(run)
    settings, records = study.settings, study.trials
    callbacks = Callbacks() if quiet else Notes(Console(stderr=True))
    if driver := who_drives(run):  # it writes the same files, with more trials
        callbacks.note(f"{run} is driven by {driver}: nothing is written, its files are that driver's")
    else:
        write_tables_and_plots(run, settings, records, callbacks)
    if as_json:
        print_json(front_rows(records, settings.axis.name))
    elif not quiet:
        console = results()
        print_front(console, records, axis=settings.axis)
        print_findings(console, find(records, settings.axis.name))


@app.command()
def dashboard(
    run: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8080,
) -> None:
    """Open optuna-dashboard on a study, also while it runs.

    Example: ltmsearch dashboard runs/my-study --port 8080
    """
    from ltmsearch.reporting.dashboard.server import serve_dashboard

    def tell(address: str) -> None:
        if host not in ("127.0.0.1", "::1", "localhost"):
            warning = "the dashboard asks for no password: all who reach it can change and delete studies"
            say(Console(stderr=True), warning)
        say(results(), f"dashboard of {run} on {address} (Ctrl-C ends it)")

    serve_dashboard(run, host=host, port=port, on_start=tell)
