"""Tables that fit the terminal: nothing cut, nothing lost."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.table import Table

from ltmsearch.io.console_tables import print_in_parts, width_of

NAMES = ("0.85", "0.7", "0.5", "0.35", "0.25")


def build(names: Sequence[str]) -> Table:
    table = Table("layer", *names, box=None)
    for column in table.columns:
        column.no_wrap = True
    table.add_row("stages.2.1.transformer.0", *(f"value {name}" for name in names))
    return table


@pytest.mark.parametrize(("width", "sizes"), [(120, (5,)), (80, (3, 2)), (55, (2, 2, 1)), (45, (1, 1, 1, 1, 1))])
def test_columns_without_room_go_into_further_tables(width: int, sizes: tuple[int, ...]) -> None:
    stream = io.StringIO()
    print_in_parts(Console(file=stream, width=width), NAMES, build)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    headings, rows = lines[::2], lines[1::2]
    assert tuple(len(line.split()) - 1 for line in headings) == sizes
    assert [name for line in headings for name in line.split()[1:]] == list(NAMES)
    assert [word for line in rows for word in line.split() if word in NAMES] == list(NAMES)
    assert all("stages.2.1.transformer.0" in line for line in rows)


def test_the_width_of_a_table_does_not_depend_on_the_console() -> None:
    table = Table("a")
    table.add_row("x" * 100)
    assert width_of(Console(width=20), table) == width_of(Console(width=200), table) == 104
