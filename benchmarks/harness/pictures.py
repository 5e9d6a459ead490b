"""Pictures of a run for the documentation: its plots, its report and its dashboard, in a headless browser."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ltmsearch.search.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""Names of browsers on the search path."""
REPORT_WIDTH = 1200
DASHBOARD_WIDTH, SHOWN_WIDTH, GAP = 1280, 800, 24
"""Width of the window, and pixels of each page in the picture and between them."""
SETTLED = "document.querySelectorAll('.js-plotly-plot .main-svg').length > 0"
"""Whether a page has drawn a plot."""


def shrink(image: Image.Image, path: Path) -> None:
    """Save a picture with 256 colours: a third of the file, and no difference that one sees."""
    colours = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
    image.convert("RGB").quantize(256, **colours).save(path, optimize=True)


@contextmanager
def headless() -> "Iterator[Browser | str]":
    """A browser of this machine, or one line that says what is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield "it needs playwright (`pip install playwright`)"
        return
    with sync_playwright() as playwright:
        named = os.environ.get("BROWSER_PATH")
        found = [named] if named else [*map(shutil.which, PROGRAMS), playwright.chromium.executable_path]
        path = next((path for path in found if path and Path(path).is_file()), None)
        if path is None:
            yield "it needs Chromium or Chrome, on the search path or named by BROWSER_PATH"
            return
        with playwright.chromium.launch(executable_path=path) as browser:
            yield browser


def picture_of_report(browser: "Browser", run: Run) -> Image.Image:
    """The report down to the end of its chapter on the front; drawn twice as large and halved, which is sharper."""
    page = _opened(browser, (run.folder / "report.html").resolve().as_uri(), REPORT_WIDTH, 900)
    chapter = page.locator("section[aria-labelledby=front]").bounding_box()
    assert chapter is not None, "the report has no chapter on the front"
    size = {"x": 0, "y": 0, "width": REPORT_WIDTH, "height": chapter["y"] + chapter["height"]}
    return _shot(page, REPORT_WIDTH, full_page=True, clip=size)


def picture_of_dashboard(browser: "Browser", run: Run) -> Image.Image:
    """The main page of the study, and beside it the page of the best searched trial of the front."""
    best = next((record for record in run.front if record.kind == "searched"), run.front[0])
    with _served(run.folder) as address:
        study = _opened(browser, address, DASHBOARD_WIDTH, 2300)
        page = _opened(browser, f"{address}/trials?numbers={best.trial}", DASHBOARD_WIDTH, 1800)
        images = [_shot(each, SHOWN_WIDTH) for each in (study, page)]
    both = Image.new("RGB", (2 * SHOWN_WIDTH + GAP, max(image.height for image in images)), "white")
    for place, image in enumerate(images):
        both.paste(image, (place * (SHOWN_WIDTH + GAP), 0))
    return both


def _opened(browser: "Browser", address: str, width: int, height: int) -> "Page":
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    return page


def _shot(page: "Page", width: int, **options: Any) -> Image.Image:
    page.wait_for_timeout(2000)  # milliseconds, for what moves into its place
    with Image.open(BytesIO(page.screenshot(**options))) as image:
        return image.convert("RGB").resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Address of a study's page, while the dashboard serves it."""
    command = [sys.executable, "-m", "ltmsearch", "dashboard", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[4]
    finally:
        process.terminate()
        process.wait()
