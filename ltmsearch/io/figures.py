"""Plotly figures as files: a page that needs no network, and a PNG where a browser is found."""

import html
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import plotly.graph_objects as go
import plotly.io
import plotly.offline

from ltmsearch.io.files import write_atomic

PNG_SECONDS = 60.0
"""Time limit of the browser that draws a PNG, start included. It usually takes 5 s."""

PLOT_SETTINGS: dict[str, Any] = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
}
"""Settings of a plot in a page: no button sends data anywhere."""

WIDTH = 1000
"""Width of a PNG in points; a point has two pixels in each direction."""

# Okabe and Ito's colours, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
BLACK, GREY, PALE, BLUE, ORANGE, RED = "#000000", "#6b6b6b", "#ececec", "#0072B2", "#E69F00", "#D55E00"
GREEN, PINK = "#009E73", "#CC79A7"

TEMPLATE = go.layout.Template(plotly.io.templates["simple_white"])
"""Fonts, hover boxes and grid lines of every figure."""
TEMPLATE.layout.update(
    font={"family": "Helvetica, Arial, sans-serif", "size": 14, "color": BLACK},
    hoverlabel={"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": BLACK}},
    xaxis={"showgrid": True, "gridcolor": PALE},
    yaxis={"showgrid": True, "gridcolor": PALE},
)


def write_drawing(
    figure: go.Figure, folder: str | Path, stem: str, *, title: str, height: int = 620, png: bool = True
) -> str | None:
    """Write `<stem>.html`, which needs no network, and `<stem>.png` where a browser is found.

    The page fills the window; one lower than `height` (points, of the PNG) by more than 140 scrolls.

    Returns:
        One line that explains a missing PNG; None if it was written or not requested.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot = plotly.io.to_html(figure, full_html=False, div_id=stem, config=PLOT_SETTINGS)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>html, body {{height: 100%; margin: 0}} body {{min-height: {height - 140}px}}</style>\n"
        f"</head>\n<body>\n{plot}\n</body>\n</html>\n"
    )
    write_atomic(folder / f"{stem}.html", page)
    image_path = folder / f"{stem}.png"
    note = _write_png(figure, image_path, height) if png else None
    if note is not None and image_path.exists():
        note += "; the existing one is older"
    return note


def figure_json(figure: go.Figure) -> str:
    """A figure as JSON for plotly's JavaScript; nothing in it can end a script element of a page."""
    text: str = figure.to_json()
    return text.replace("</", "<\\/")


def plotly_script() -> str:
    """Plotly's JavaScript, about 5 MB, for a page that needs no network."""
    script: str = plotly.offline.get_plotlyjs()
    return script


# Without MathJax, which kaleido would fetch from the network. Exit code 3: no browser. The browser stays in this
# program's process group, so that both can be killed together; kaleido would start it in a session of its own.
_PNG_PROGRAM = """
import json, subprocess, sys
class InOurGroup(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "start_new_session": False})
subprocess.Popen = InOurGroup
import kaleido
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
    """Draw the PNG; returns one line with the reason if that fails."""
    # In a separate process: a hanging browser can be killed, and kaleido's logs, warnings and event loops stay in it.
    with tempfile.TemporaryDirectory() as scratch:
        source, drawn, log = (Path(scratch, name) for name in ("figure.json", "figure.png", "stderr"))
        source.write_text(figure.to_json(), encoding="utf-8")
        # -P: a module in the working folder must not replace a library.
        command = [sys.executable, "-P", "-c", _PNG_PROGRAM, str(source), str(drawn), str(WIDTH), str(height)]
        with log.open("wb") as out:
            code = _run_and_end(command, out, scratch)
        if code is None:
            return f"{path.name} not written: the browser took more than {PNG_SECONDS:g} s"
        if code == 3:
            return f"{path.name} not written: it needs Chrome or Chromium (`plotly_get_chrome` installs one)"
        if code != 0:
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            return f"{path.name} not written: the browser failed with {last[:200]!r}"
        if not drawn.exists():
            return f"{path.name} not written: the browser ended without a picture"
        write_atomic(path, drawn.read_bytes())
    return None


def _run_and_end(command: list[str], out: IO[bytes], scratch: str) -> int | None:
    """Exit code of a program, of which nothing is left afterwards, also after Ctrl-C; None after the time limit."""
    environment = os.environ | {"TMPDIR": scratch}  # the browser's profile, which a killed browser does not remove
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        return process.wait(PNG_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):  # the group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
