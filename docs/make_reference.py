"""Write the generated documentation: the commands reference, and the list of modules on the architecture page.

    python docs/make_reference.py

A test compares the files with the output of this script, so that they cannot drift from the code.
"""

import ast
import re
import runpy
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from ltmsearch.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ltmsearch"
COMMANDS = ROOT / "docs/reference/commands.md"
ARCHITECTURE = ROOT / "docs/architecture.md"
KINDS = {int: "whole number", float: "number", Path: "path"}
"""Name of an option's value by its type; all other types are text."""
HEAD = """# Commands

<!-- Written by `python docs/make_reference.py` from the command line itself; do not edit. -->

Every command takes `--help` (`-h`); `ltmsearch --version` prints the version. Exit codes: 0 done; 2 the input is wrong
(explained in one line); 143
stopped by SIGTERM; 1 any other failure.
"""


def commands_page() -> str:
    """The commands reference."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join((HEAD, *(_section(name, command) for name, command in commands.items())))


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(("ltmsearch", name, *(_value(a, command) for a in arguments), "[OPTIONS]"))
    paragraphs = [" ".join(line.split()) for line in (command.help or "").split("\n\n")]
    lines = [f"## {name}", "", f"```text\n{usage}\n```", ""]
    for line in paragraphs:
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
    """Sort key that groups options by panel, in the order of `--help`."""
    panels = list(dict.fromkeys(_panel(option) for option in options))
    return lambda option: panels.index(_panel(option))


def _value(parameter: Any, command: Any) -> str:
    """Placeholder of a parameter's value, such as `RECIPE|BACKBONE` or `number`."""
    if parameter.metavar or parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    # The types come from the callback, because options store them differently in different versions of typer.
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
    """Text in one line, with `<` escaped for Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")


def _sentences(parameter: Any) -> Iterator[str]:
    yield parameter.help or ""
    if parameter.required and parameter.param_type_name == "option":
        yield "Must be given."
    elif parameter.default not in (None, False):
        yield f"(default: {parameter.default})"


def architecture_page() -> str:
    """The architecture page with its list of modules up to date."""
    layers = runpy.run_path(str(ROOT / "tests/test_architecture.py"))["LAYERS"]
    lines = [line for layer in layers if layer != "__main__" for line in _module_lines(PACKAGE / layer, indent="")]
    listed = "\n".join(("<!-- modules: begin -->", "", *lines, "", "<!-- modules: end -->"))
    page = ARCHITECTURE.read_text(encoding="utf-8")
    return re.sub(r"<!-- modules: begin -->.*<!-- modules: end -->", lambda _: listed, page, flags=re.DOTALL)


def _module_lines(path: Path, indent: str) -> Iterator[str]:
    """List items of a module, or of a package and everything in it."""
    if not path.is_dir():
        yield f"{indent}* `{path.stem}`: {_first_sentence(path.with_suffix('.py'))}"
        return
    yield f"{indent}* **`{path.relative_to(PACKAGE)}/`**: {_first_sentence(path / '__init__.py')}"
    files = [file.with_suffix("") for file in path.glob("*.py") if file.stem != "__init__"]
    packages = [file.parent for file in path.glob("*/__init__.py")]
    for member in (*sorted(files), *sorted(packages)):
        yield from _module_lines(member, indent + "    ")


def _first_sentence(file: Path) -> str:
    paragraph, *_ = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")
    return re.split(r"(?<=\.) ", " ".join(paragraph.split()))[0]


if __name__ == "__main__":
    for page, text in ((COMMANDS, commands_page()), (ARCHITECTURE, architecture_page())):
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}")
