"""A headless browser for tests of pages: the fixture `browse` (in `conftest.py`) opens a page as a person would see it.

    def test_page(browse: Browse) -> None:
        visit = browse(folder / "report.html", width=390)     # or browse("http://127.0.0.1:8080/")
        visit.page.get_by_text("Front").first.hover()         # a `playwright.sync_api.Page`
        assert visit.problems == [] and visit.requests == []

The browser is the one that this machine has: Debian's Chromium, Google Chrome, one that `playwright install` left, or
the program that the variable `BROWSER_PATH` names. Nothing is downloaded; without one the tests are skipped.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""Names that browsers which playwright can drive have on the search path."""


@dataclass
class Visit:
    """A page that was opened, and what happened since."""

    page: Page
    problems: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions nobody caught, and resources that failed to load."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for beside the page itself; not those that stand in the page (`data:`, `blob:`)."""

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window: more than 0 scrolls sideways."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width


Browse = Callable[..., Visit]
"""`(address or file, *, width=1280, height=900) -> Visit`."""


def program(installed: str) -> str | None:
    """The browser to be driven, if there is one.

    Args:
        installed: Where playwright would have put its own.
    """
    named = os.environ.get("BROWSER_PATH")
    found = [named] if named else [path for name in PROGRAMS if (path := shutil.which(name))] + [installed]
    return next((path for path in found if Path(path).is_file()), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser, started once for a module; skips where there is none."""
    with sync_playwright() as playwright:
        path = program(playwright.chromium.executable_path)
        if path is None:
            pytest.skip("needs Chromium or Chrome, on the search path or named by BROWSER_PATH")
        with playwright.chromium.launch(executable_path=path) as running:
            yield running


@pytest.fixture
def browse(browser: Browser) -> Iterator[Browse]:
    """Opens pages, each in a profile of its own that is closed at the end of the test."""
    with ExitStack() as closing:

        def visit(where: str | Path, *, width: int = 1280, height: int = 900) -> Visit:
            address = where.resolve().as_uri() if isinstance(where, Path) else where
            context = closing.enter_context(browser.new_context(viewport={"width": width, "height": height}))
            visit = Visit(context.new_page())
            page = visit.page
            page.set_default_timeout(30_000)  # milliseconds: other jobs may keep the machine busy
            page.on("console", lambda m: visit.problems.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: visit.problems.append(str(error)))
            page.on("requestfailed", lambda request: visit.problems.append(f"failed: {request.url[:200]}"))
            page.on("request", lambda request: _note(visit, request.url, address))
            page.goto(address)
            return visit

        yield visit


def _note(visit: Visit, url: str, address: str) -> None:
    if not url.startswith(("data:", "blob:")) and url != address:
        visit.requests.append(url)
