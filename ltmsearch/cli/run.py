"""The `run` command: search."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltmsearch.cli.options import OUTPUT, completing, flag, options_from
from ltmsearch.cli.shared_options import AsJson, Quiet, Verbose
from ltmsearch.cli.terminal import print_json, results, watched
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError, LtmsearchError
from ltmsearch.io.console_tables import print_line
from ltmsearch.io.presets import find_file, shipped_names
from ltmsearch.io.yaml_models import load

if TYPE_CHECKING:
    from ltmsearch.search.run import Run

# A range in --budget-gflops sets `lowest_gflops`, and the URL of --storage may contain the password.
NO_OPTIONS = ("schema_version", "lowest_gflops", "storage_password")


@options_from(StudySettings, leave_out=NO_OPTIONS)
def run(
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="YAML file of settings, or the name of a shipped study; options override it.",
            autocompletion=completing(lambda: shipped_names("studies")),
        ),
    ] = None,
    takeover: Annotated[
        bool, flag("--takeover", "Continue a study that another process is running; that process stops.", panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **given: Any,
) -> None:
    """Search which layers should merge tokens, and how much, under a budget. Repeat the command to continue a study.

    Example: ltmsearch run --backbone mobilevit_s --budget-gflops 1.2
    """
    settings = _settings({name: value for name, value in given.items() if value is not None}, config)
    with watched(quiet=quiet, verbose=verbose, next_step=lambda: _next_step(settings.run_dir)) as callbacks:
        from ltmsearch.search.timing import LOADING, Clock

        clock = Clock()
        with clock.part(LOADING):
            from ltmsearch.study import run_study

        result = run_study(settings, callbacks, takeover=takeover, clock=clock)
    if as_json:
        from ltmsearch.reporting.json_summary import study_document

        print_json(study_document(result))
    elif not quiet:
        from ltmsearch.reporting.html import PAGE
        from ltmsearch.reporting.terminal import print_results

        console = results()
        print_results(console, result)
        print_line(console, f"Results: {result.folder / PAGE}; plots, tables and recipes in {result.folder}")
    if not result.front:
        raise LtmsearchError(_without_front(result))


def _without_front(run: "Run") -> str:
    states = Counter(record.state for record in run.trials if record.label != "plain")
    found = ", ".join(f"{number} {state}" for state, number in states.items()) or "no trial has run"
    return (
        f"no trial within the budget has a score ({found}): continue with more --trials or without --timeout, or raise "
        "the budget"
    )


def _settings(given: dict[str, Any], config: str | None) -> StudySettings:
    if config is not None:
        from_file = load(StudySettings, find_file("studies", config)).model_dump(exclude_unset=True)
        return StudySettings.make("run", **{**from_file, **given})
    for alternatives in (("backbone",), ("budget_gflops", "budget_ms")):
        if not any(name in given for name in alternatives):
            options = " or ".join(f"--{name.replace('_', '-')}" for name in alternatives)
            raise InputError(f"{options} must be given, or --config with a file that sets it")
    return StudySettings.make("run", **given)


def _next_step(folder: Path) -> str:
    if folder.exists():
        return f"repeat the command to continue from {folder}"
    return "nothing has been written yet; repeat the command to start again"
