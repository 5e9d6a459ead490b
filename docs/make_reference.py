"""Writes the commands reference, `docs/reference/commands.md`, from what `--help` of each command is made of.

    python docs/make_reference.py

A test compares the file with what this would write, so that the page and the command line cannot drift apart.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from ltmsearch.cli.main import app

PAGE = Path(__file__).parent / "reference" / "commands.md"
KINDS = {int: "whole number", float: "number", Path: "path"}
"""What the value of an option is called, by its type; all else is text."""
HEAD = """# Commands

<!-- Written by `python docs/make_reference.py` from the command line itself; do not edit. -->

Every command takes `--help` (`-h`); `ltmsearch --version` prints the version. Exit codes: 0 done; 2 the input is wrong
(one line says what, and what would do); 1 anything else.
"""


def commands_page() -> str:
    """The whole page."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join((HEAD, *(_section(name, command) for name, command in commands.items())))


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(("ltmsearch", name, *(_value(a, command) for a in arguments), "[OPTIONS]"))
    told = [" ".join(line.split()) for line in (command.help or "").split("\n\n")]
    lines = [f"## {name}", "", f"```text\n{usage}\n```", ""]
    for line in told:
        is_example, _, example = line.partition(": ")
        code = is_example in ("Example", "Several GPUs")
        lines += [f"{is_example}: `{example}`" if code else _plain(line), ""]
    if arguments:
        lines += ["| argument | |", "|---|---|", *(_row(f"`{_value(a, command)}`", a) for a in arguments), ""]
    for panel, members in groupby(sorted(options, key=_panel_order(options)), key=_panel):
        lines += [f"| {panel} | |", "|---|---|", *(_row(_spelling(o, command), o) for o in members), ""]
    return "\n".join(lines)


def _panel(option: Any) -> str:
    return str(option.rich_help_panel or "option")


def _panel_order(options: list[Any]) -> Callable[[Any], int]:
    """Sort key that brings the options of a panel together, panels and options in the order of `--help`."""
    panels = list(dict.fromkeys(_panel(option) for option in options))
    return lambda option: panels.index(_panel(option))


def _value(parameter: Any, command: Any) -> str:
    """What stands for a parameter's value, such as `RECIPE|BACKBONE` or `int`."""
    if parameter.metavar or parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    # From the function behind the command: how options keep their types differs between versions of typer.
    annotation = get_type_hints(command.callback)[parameter.name]
    (kind, *_) = get_args(annotation) or [annotation]
    return KINDS.get(kind, "text")


def _spelling(option: Any, command: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {_value(option, command)}"


def _row(what: str, parameter: Any) -> str:
    cells = (what, _plain(" ".join(_sentences(parameter))))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    """Text in which Markdown sees no tags."""
    return " ".join(text.split()).replace("<", "&lt;")


def _sentences(parameter: Any) -> Iterator[str]:
    yield parameter.help or ""
    if parameter.required and parameter.param_type_name == "option":
        yield "Must be given."
    elif parameter.default not in (None, False):
        yield f"(default: {parameter.default})"


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
    print(f"wrote {PAGE}")
