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
from typing import Any

from ltmsearch.cli.commands import ENTRIES, load_command

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ltmsearch"
COMMANDS = ROOT / "docs/reference/commands.md"
ARCHITECTURE = ROOT / "docs/architecture.md"
HEAD = """# Commands

<!-- Written by `python docs/make_reference.py` from the command line itself; do not edit. -->

Every command takes `--help` (`-h`); `ltmsearch --version` prints the version. Exit codes: 0 success; 2 wrong input
(one line with the rule, the value received and a suggestion); 143 stopped by SIGTERM; 1 any other failure.
"""


def commands_page() -> str:
    """Text of the page."""
    return "\n".join((HEAD, *(_section(name, load_command(name)) for name in ENTRIES)))


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(("ltmsearch", name, *(a.metavar for a in arguments), "[OPTIONS]"))
    lines = [f"## {name}", "", f"```text\n{usage}\n```", ""]
    for paragraph in (" ".join(text.split()) for text in command.help.split("\n\n")):
        label, _, example = paragraph.partition(": ")
        is_code = label in ("Example", "Several GPUs")
        lines += [f"{label}: `{example}`" if is_code else _plain(paragraph), ""]
    if arguments:
        lines += ["| argument | |", "|---|---|", *(_row(f"`{a.metavar}`", a) for a in arguments), ""]
    for panel, members in groupby(sorted(options, key=_panel_order(options)), key=_panel):
        lines += [f"| {panel} | |", "|---|---|", *(_row(_spelling(o), o) for o in members), ""]
    return "\n".join(lines)


def _panel(option: Any) -> str:
    return str(option.rich_help_panel or "option")


def _panel_order(options: list[Any]) -> Callable[[Any], int]:
    """Sort key that groups options by panel, in the order of `--help`."""
    panels = list(dict.fromkeys(_panel(option) for option in options))
    return lambda option: panels.index(_panel(option))


def _spelling(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"{names} {option.metavar}".rstrip()


def _row(first: str, parameter: Any) -> str:
    text = parameter.help or ""
    if parameter.required and parameter.param_type_name == "option":
        text += " Must be given."
    elif parameter.default not in (None, False) and "default:" not in text:
        text += f" (default: {parameter.default})"
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (first, _plain(text)))} |"


def _plain(text: str) -> str:
    """Text in which Markdown sees no tags."""
    return " ".join(text.split()).replace("<", "&lt;")


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
