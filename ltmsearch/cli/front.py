"""The `front` and `dashboard` commands, which show an existing study."""

from typing import Annotated

import typer

from ltmsearch.callbacks import Callbacks
from ltmsearch.cli.shared_options import AsJson, Quiet, RunFolder
from ltmsearch.cli.terminal import notes, print_json, results
from ltmsearch.io.console_tables import print_line


def front(run: RunFolder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Print a study's front, its layers and the recommended trial, and write its tables, plots and report again.

    Nothing is written while another process is running the study.

    Example: ltmsearch front runs/mobilevit_s-ltm-1.2gflops-224-digits
    """
    from ltmsearch.cli.progress import Notes
    from ltmsearch.io.files import refuse_links_outward
    from ltmsearch.reporting.json_summary import front_rows
    from ltmsearch.reporting.terminal import print_results
    from ltmsearch.reporting.write import write_results
    from ltmsearch.search.lease import current_driver
    from ltmsearch.search.run import Run

    refuse_links_outward(run)
    study = Run.open(run)
    callbacks = Callbacks() if quiet else Notes(notes())
    if driver := current_driver(run):
        callbacks.note(f"{run} is being run by {driver}, which writes its files: nothing is written here")
    else:
        write_results(study, callbacks)
    if as_json:
        print_json(front_rows(study.trials, study.settings.axis))
    elif not quiet:
        print_results(results(), study)


def dashboard(
    run: RunFolder,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="INT", help="Port to listen on; 0 picks a free one.", min=0, max=65535)
    ] = 8080,
) -> None:
    """Open optuna-dashboard on a study, also while it is running.

    Example: ltmsearch dashboard runs/my-study --port 8080
    """
    from ltmsearch.cli.progress import Notes
    from ltmsearch.reporting.dashboard.server import serve_dashboard

    if host not in ("127.0.0.1", "::1", "localhost"):
        print_line(notes(), "the dashboard has no password: everyone who can reach it can change and delete studies")
    serve_dashboard(run, host=host, port=port, callbacks=Notes(results()))
