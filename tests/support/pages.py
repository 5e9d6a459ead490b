"""Markdown pages of the documentation and their code blocks."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = (README, ROOT / "CONTRIBUTING.md", *SITE_PAGES)


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    """`python`, `text`, `yaml`, …; empty for shell commands."""
    code: str


def blocks(page: Path) -> list[Block]:
    """Code blocks in order, without the indent of blocks in lists."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [Block(language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)) for indent, language, code in found]


def shell_lines(page: Path) -> list[str]:
    """Shell commands that start `ltmsearch`, each in one line, without a prompt or launcher."""
    code = "".join(block.code for block in blocks(page) if not block.language)
    lines = re.sub(r"\s*\\\n\s*", " ", code).splitlines()
    commands = [re.sub(r"^(\$ |pip install .* && |torchrun .* -m )(?=ltmsearch)", "", line) for line in lines]
    return [command for command in commands if command.startswith("ltmsearch ")]


def without_code(page: Path) -> str:
    """Text of a page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
