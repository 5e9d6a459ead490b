"""The report of a small study in a browser."""

from pathlib import Path

import pytest
from support.browser import Browse

from ltmsearch.reporting.html import PAGE
from ltmsearch.search.run import Run

pytestmark = pytest.mark.slow

MARKS = "#plot-front .scatterlayer .trace .points path.point"


@pytest.fixture
def study(rejecting: Path) -> Run:
    return Run.open(rejecting)


@pytest.fixture
def report(rejecting: Path) -> Path:
    return rejecting / PAGE


def test_page_loads_without_requests_or_errors(browse: Browse, report: Path) -> None:
    visit = browse(report)
    visit.page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 8 * 2")
    visit.page.wait_for_load_state("networkidle")
    assert visit.problems == []
    assert visit.requests == []
    assert visit.overflow == 0


def test_phones_do_not_scroll_sideways(browse: Browse, report: Path) -> None:
    visit = browse(report, width=390, height=844)
    page = visit.page
    page.wait_for_selector(MARKS)
    assert visit.overflow == 0
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert visit.overflow == 0
    # Plots take the width there is; the one that needs more scrolls inside its box.
    widths = page.evaluate("[...document.querySelectorAll('.plot')].map(p => [p.id, p.offsetWidth])")
    assert all(width <= 390 for name, width in widths if name != "plot-layers")
    assert page.evaluate("document.getElementById('plot-layers').parentElement.offsetWidth") <= 390


def test_keyboard_reaches_skip_link_and_contents(browse: Browse, report: Path) -> None:
    page = browse(report).page
    page.wait_for_selector(MARKS)
    focused = "document.activeElement.getAttribute('href')"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "#main"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # it is seen when it has focus
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
    assert reached == ["#found", "#front", "#growth", "#layers", "#information", "#scores", "#times", "#settings"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#settings"


def test_print_unfolds_everything_and_cuts_no_plot(browse: Browse, report: Path) -> None:
    page = browse(report).page
    page.wait_for_selector(MARKS)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 within its margins
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    ends = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().right)")
    assert max(ends) <= 690
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0


@pytest.mark.parametrize("name", [PAGE, "front.html", "layers.html"])
def test_no_button_sends_anything_anywhere(browse: Browse, study: Run, name: str) -> None:
    page = browse(study.folder / name).page
    page.wait_for_selector(".modebar-btn", state="attached")
    found = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title ?? b.ariaLabel)")
    assert "Download plot as a PNG" in found
    assert not [words for words in found if "loud" in words or "hare" in words], found
    if name == PAGE:  # the keyboard stops at each
        assert set(found) == {"Download plot as a PNG", "Reset axes"}


def test_plots_have_labels_for_screen_readers(browse: Browse, report: Path) -> None:
    page = browse(report).page
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 8 * 2")
    assert page.evaluate("document.querySelectorAll('svg.main-svg:not([aria-hidden=true])').length") == 0
    labels = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.ariaLabel)")
    assert labels[0].startswith("Top-1 less the plain network's, in points, against GFLOPs per image at 224 px")
    assert all(labels)
