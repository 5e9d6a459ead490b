import os
import re
import signal
import struct
from pathlib import Path

import plotly.graph_objects as go
import pytest
from support.processes import is_running

from ltmsearch.io import figures
from ltmsearch.io.figures import write_drawing

FIGURE = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    note = write_drawing(FIGURE, tmp_path / "run", "curves", title="a <b> & c", png=False)
    assert note is None
    page = (tmp_path / "run/curves.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 6_000_000
    # The tags of the page itself; the bundled plotly.js has tags in its strings.
    scripts = re.findall(r"<script\b[^>]*>", page)
    assert scripts
    assert not [tag for tag in scripts if "src=" in tag]
    assert not re.findall(r"<link\b[^>]*>", page.partition("<script")[0])
    assert "<title>a &lt;b&gt; &amp; c</title>" in page
    assert "Plotly.newPlot" in page
    assert os.listdir(tmp_path / "run") == ["curves.html"]


def test_without_a_browser_a_note_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    (tmp_path / "front.png").write_bytes(b"old")
    note = write_drawing(FIGURE, tmp_path, "front", title="t")
    assert note is not None
    assert "needs Chrome or Chromium" in note
    assert note.endswith("the existing one is older")
    assert "\n" not in note
    assert (tmp_path / "front.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("program", "seconds", "said"),
    [
        ("import time; time.sleep(60)", 0.5, "took more than 0.5 s"),
        ("raise OSError('no libnss3.so')", 60, "failed with 'OSError: no libnss3.so'"),
    ],
    ids=["hangs", "breaks"],
)
def test_a_browser_that_hangs_or_breaks_ends_in_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, seconds: float, said: str
) -> None:
    monkeypatch.setattr(figures, "_PNG_PROGRAM", program)
    monkeypatch.setattr(figures, "PNG_SECONDS", seconds)
    note = write_drawing(FIGURE, tmp_path, "front", title="t")
    assert note is not None
    assert said in note
    assert os.listdir(tmp_path) == ["front.html"]


def test_nothing_is_left_of_a_browser_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real program with a browser that never answers; a signal ends the wait, as Ctrl-C and the time limit do."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    started, browser, scratch = tmp_path / "started", tmp_path / "browser.sh", tmp_path / "scratch"
    browser.write_text(f"#!/bin/sh\necho $$ > {started}\nkill -USR1 {os.getpid()}\nexec sleep 600\n")
    browser.chmod(0o755)
    scratch.mkdir()
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_drawing(FIGURE, tmp_path, "front", title="t")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not is_running(int(started.read_text()))
    assert os.listdir(scratch) == []


def test_a_drawn_png_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for the browser: gets the figure as JSON, a target and a size, as the real program does.
    program = (
        "import json, sys; json.load(open(sys.argv[1]))['data']; open(sys.argv[2], 'w').write(' '.join(sys.argv[3:]))"
    )
    monkeypatch.setattr(figures, "_PNG_PROGRAM", program)
    note = write_drawing(FIGURE, tmp_path, "front", title="t", height=800)
    assert note is None
    assert (tmp_path / "front.png").read_text() == "1000 800"


@pytest.mark.slow
def test_a_browser_draws_the_png(tmp_path: Path) -> None:
    note = write_drawing(FIGURE, tmp_path, "front", title="t")
    if note is not None and "needs Chrome" in note:
        pytest.skip(note)
    assert note is None
    header = (tmp_path / "front.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (2000, 1240)
