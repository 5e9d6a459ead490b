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
SETTLING = 3000
"""Milliseconds for what is still drawn or moves into its place."""
DASHBOARD_WIDTH, SHOWN_WIDTH, GAP = 1280, 800, 24
"""Width of the window, and pixels of each page in the picture and between them."""


def shrink(image: Image.Image, path: Path) -> None:
    """Save a picture with 256 colours: a third of the file, and no difference that one sees."""
    way = Image.Quantize.MAXCOVERAGE
    image.convert("RGB").quantize(256, method=way, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)


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
    page = _opened(browser, (run.folder / "report.html").resolve().as_uri(), ".main-svg", REPORT_WIDTH, 900)
    chapter = page.locator("section[aria-labelledby=front]").bounding_box()
    assert chapter is not None, "the report has no chapter on the front"
    size = {"x": 0, "y": 0, "width": REPORT_WIDTH, "height": chapter["y"] + chapter["height"]}
    return _shot(page, REPORT_WIDTH, full_page=True, clip=size)


def picture_of_dashboard(browser: "Browser", run: Run) -> Image.Image:
    """The main page of the study, and beside it the page of the best searched trial of the front."""
    best = next((record for record in run.front if record.kind == "searched"), run.front[0])
    with _served(run.folder) as address:
        last = "[id^='user-defined-plot:']"
        study = _opened(browser, address, f"{last} .main-svg", DASHBOARD_WIDTH, 3000)
        boxes = [plot.bounding_box() for plot in study.locator(last).all()]
        bottom = max(box["y"] + box["height"] for box in boxes if box)
        size = {"x": 0, "y": 0, "width": DASHBOARD_WIDTH, "height": bottom}
        trial = _opened(browser, f"{address}/trials?numbers={best.trial}", "img", DASHBOARD_WIDTH, 1800)
        images = [_shot(study, SHOWN_WIDTH, clip=size), _shot(trial, SHOWN_WIDTH)]
    both = Image.new("RGB", (2 * SHOWN_WIDTH + GAP, max(image.height for image in images)), "white")
    for place, image in enumerate(images):
        both.paste(image, (place * (SHOWN_WIDTH + GAP), 0))
    return both


def _opened(browser: "Browser", address: str, shown: str, width: int, height: int) -> "Page":
    """A page in a window, once something is shown."""
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2)
    page.goto(address)
    page.locator(shown).first.wait_for(timeout=60_000)
    page.wait_for_timeout(SETTLING)
    return page


def _shot(page: "Page", width: int, **options: Any) -> Image.Image:
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
