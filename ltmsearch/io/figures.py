"""A plotly figure as files: a page that needs no network, and a PNG where a browser is found."""

import html
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
import plotly.offline

from ltmsearch.io.files import write_atomic

PNG_SECONDS = 60.0
"""How long the browser that draws the PNG may take, from start to end. It usually takes 5 s."""

PLOT_SETTINGS: dict[str, Any] = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
}
"""Of a plot in a page: nothing leaves the machine at the press of a button."""

WIDTH = 1000
"""Of a PNG, in points; a point has two pixels each way."""


@dataclass(frozen=True, kw_only=True)
class WrittenDrawing:
    """What `write_drawing` left behind."""

    paths: tuple[Path, ...]
    """Files written, the page first."""
    note: str | None
    """One line that says why there is no PNG; None when there is one or none was wanted."""


def write_drawing(
    figure: go.Figure, folder: str | Path, stem: str, *, title: str, height: int = 620, png: bool = True
) -> WrittenDrawing:
    """Writes `<stem>.html`, which needs no network, and `<stem>.png` where a browser is found.

    A PNG that cannot be drawn is no error: the note says why.

    Args:
        figure: What to show. In the page it fills the window.
        folder: Where to write; made when missing.
        stem: Name of the files without their ending.
        title: Of the page, in the browser's tab.
        height: Of the PNG, in points; it is `WIDTH` wide. A window that is lower by more than 140 scrolls.
        png: Whether a PNG is wanted; it takes some seconds.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot = plotly.io.to_html(figure, full_html=False, div_id=stem, config=PLOT_SETTINGS)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>html, body {{height: 100%; margin: 0}} body {{min-height: {height - 140}px}}</style>\n"
        f"</head>\n<body>\n{plot}\n</body>\n</html>\n"
    )
    page_path, image_path = write_atomic(folder / f"{stem}.html", page), folder / f"{stem}.png"
    note = _write_png(figure, image_path, height) if png else None
    if note is not None and image_path.exists():
        note += "; the one that is there is older"
    return WrittenDrawing(paths=(page_path, image_path) if png and note is None else (page_path,), note=note)


def figure_json(figure: go.Figure) -> str:
    """A figure as plotly's JavaScript takes it, with nothing in it that could end a script element of a page."""
    text: str = figure.to_json()
    return text.replace("</", "<\\/")


def plotly_script() -> str:
    """Plotly's JavaScript, some 5 MB, for a page that needs no network."""
    script: str = plotly.offline.get_plotlyjs()
    return script


# Without MathJax, which kaleido would fetch from the network. Exit code 3: no browser.
_PNG_PROGRAM = """
import json, sys, kaleido
from choreographer.errors import ChromeNotFoundError
with open(sys.argv[1], encoding="utf-8") as stream:
    figure = json.load(stream)
size = {"width": int(sys.argv[3]), "height": int(sys.argv[4]), "scale": 2}
page = kaleido.PageGenerator(mathjax=False)
try:
    kaleido.write_fig_sync(figure, path=sys.argv[2], opts=size, kopts={"page_generator": page, "timeout": 40})
except ChromeNotFoundError:
    sys.exit(3)
"""


def _write_png(figure: go.Figure, path: Path, height: int) -> str | None:
    """Draws the PNG; returns why it could not, in one line.

    A process of its own does it, because a browser that hangs can then be given up, and because what kaleido
    logs, warns of and does to event loops stays there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source, drawn, said = (Path(scratch, name) for name in ("figure.json", "figure.png", "stderr"))
        source.write_text(figure.to_json(), encoding="utf-8")
        # -P: a module in the working folder must not stand in for a library.
        command = [sys.executable, "-P", "-c", _PNG_PROGRAM, str(source), str(drawn), str(WIDTH), str(height)]
        with said.open("wb") as out:
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=PNG_SECONDS)
            except subprocess.TimeoutExpired:
                return f"{path.name} not written: the browser took more than {PNG_SECONDS:g} s"
        if done.returncode == 3:
            return f"{path.name} not written: it needs Chrome or Chromium (`plotly_get_chrome` fetches one)"
        if done.returncode != 0:
            last = said.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            return f"{path.name} not written: the browser failed with {last[:200]!r}"
        write_atomic(path, drawn.read_bytes())
    return None
