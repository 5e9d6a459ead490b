"""The commands by name. A module of a command is imported when it is called, and not for `--help` of all commands."""

from functools import cache
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


class Entry(NamedTuple):
    """One line of `ltmsearch --help`."""

    module: str
    """Module of `ltmsearch.cli` that has a function of the command's name."""
    summary: str
    """First paragraph of the function's docstring."""


# In the order of the help: a study's in order of use, then those that describe a backbone.
ENTRIES = {
    "run": Entry(
        "run",
        "Search which layers should merge tokens, and how much, under a budget. Repeat the command to continue a "
        "study.",
    ),
    "front": Entry(
        "front",
        "Print a study's front, its layers and the recommended trial, and write its tables, plots and report again.",
    ),
    "dashboard": Entry("front", "Open optuna-dashboard on a study, also while it is running."),
    "train": Entry(
        "train",
        "Train a recipe from scratch or from given weights; options override the recipe's keys. --resume continues.",
    ),
    "validate": Entry(
        "validate",
        "Score trained weights: top-1, top-5, agreement with the unmerged network, loss, information terms, cost, "
        "speed.",
    ),
    "export": Entry(
        "export",
        "Write recipes, and on request weights and programs, to RUN/export/<trial>/ (for a training: to RUN/export/).",
    ),
    "visualize": Entry(
        "visualize",
        "Draw which patches of an image merge: one picture of all layers, and an HTML page with a slider.",
    ),
    "space": Entry(
        "describe",
        "Show a backbone's layers with their tokens and costs, the savings of merging, and the range of reachable "
        "costs.",
    ),
    "cost": Entry(
        "describe",
        "Count the multiply-adds of one schedule, by formula and by tracing; without --keep, of the unmerged network.",
    ),
    "profile": Entry(
        "profile",
        "Measure latency on a device: of a recipe and its unmerged network, or of enough subnets to predict a "
        "backbone's.",
    ),
}


@cache
def load_command(name: str) -> Any:
    """The command with its options.

    Args:
        name: One of `ENTRIES`.
    """
    from ltmsearch.cli.options import ManyValues

    function = getattr(import_module(f"ltmsearch.cli.{ENTRIES[name].module}"), name)
    alone = typer.Typer(add_completion=False)
    alone.command(cls=ManyValues)(function)
    return get_command(alone)


class Deferred(TyperCommand):
    """Stands for a command in the help of all commands; becomes the command when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Context of the command itself."""
        return load_command(str(self.name)).make_context(info_name, args, parent, **extra)


class Commands(TyperGroup):
    """A group that starts with the commands of `ENTRIES`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        known = {name: Deferred(name, help=entry.summary) for name, entry in ENTRIES.items()}
        self.commands = {**known, **self.commands}


app = typer.Typer(
    name="ltmsearch",
    help="Find which layers of a vision transformer should merge tokens, and how much, under a compute budget.\n\n"
    "Example: ltmsearch run --backbone mobilevit_s --budget-gflops 1.2",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from ltmsearch import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
