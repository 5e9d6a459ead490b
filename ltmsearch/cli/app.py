"""The application that the commands belong to, and what they share."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from ltmsearch.cli import options
from ltmsearch.errors import unknown_name

ORDER = ("run", "front", "dashboard", "train", "validate", "export", "visualize", "space", "cost", "profile")
"""The commands as they are listed: as they are used one after the other, and behind them those that tell of a backbone.
"""


class InOrder(TyperGroup):
    """The commands in their order; for a name that is none of theirs, the nearest one."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return sorted(self.commands, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name."""
        if args and args[0] not in self.commands and not ctx.resilient_parsing:
            raise unknown_name("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="ltmsearch",
    cls=InOrder,
    help="Find which layers of a vision transformer should merge tokens, and how much, under a compute budget.\n\n"
    "Example: ltmsearch run --backbone mobilevit_s --budget-gflops 1.2",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

OUTPUT, DATA = "Output", "Data"
"""Panels of the help."""

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a study.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Image folder with train/ and validation/ (or val/), one folder per class.",
        rich_help_panel=DATA,
    ),
]
Dataset = Annotated[
    str | None,
    options.such_as(
        options.DATASETS, "digits (built in), folder, or a timm data set name. (default: digits)", panel=DATA
    ),
]


def flag(*names_and_help: str, panel: str | None = None) -> Any:
    """An option without a value.

    Args:
        names_and_help: Its names, and last what it does.
        panel: Of the help.
    """
    *options, help = names_and_help
    return typer.Option(*options, metavar="", help=help, rich_help_panel=panel)  # else the help says <bool>


AsJson = Annotated[bool, flag("--json", "Print one JSON document and nothing else on standard output.", panel=OUTPUT)]
Quiet = Annotated[bool, flag("--quiet", "-q", "No progress, no table.", panel=OUTPUT)]
QuietProgress = Annotated[bool, flag("--quiet", "-q", "No progress.", panel=OUTPUT)]
Verbose = Annotated[
    bool, flag("--verbose", "-v", "Log to standard error what is decided, timed and written.", panel=OUTPUT)
]


def speaks() -> bool:
    """Whether this process is the one that prints: of those that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(console: Console, line: str) -> None:
    """Print one line as it is, however long."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


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
