"""The application that the commands belong to, and what they share."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="ltmsearch",
    help="Find which layers of a vision transformer should merge tokens, and how much, under a compute budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(help="Run directory of a study.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Image folder with train/ and validation/ (or val/), one folder per class.")
]
Dataset = Annotated[
    str | None, typer.Option(help="digits (built in), folder, or a timm data set name. (default: digits)")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
