"""The README and the pages of `docs/`, and the code blocks in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    """`python`, `text`, `yaml`, …; empty: lines for a shell."""
    code: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order; those in lists without their indent."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [Block(language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)) for indent, language, code in found]


def shell_lines(page: Path) -> list[str]:
    """The lines of its shell blocks that begin with `ltmsearch`, or with a launcher of it."""
    lines = [
        line.removeprefix("$ ") for block in blocks(page) if not block.language for line in block.code.splitlines()
    ]
    ours = [re.sub(r"^(\$ |pip install .* && |torchrun .* -m )(?=ltmsearch)", "", line) for line in lines]
    return [line for line in ours if line.startswith("ltmsearch ")]


def without_code(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
