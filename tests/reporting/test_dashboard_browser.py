"""The dashboard in a browser, of a finished and of a running study."""

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from support.browser import Browse
from support.processes import DEVNULL, PIPE, Process, started
from support.sizes import TINY

from ltmsearch.search.run import Run

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PLOTS = "Array.from(document.querySelectorAll('.js-plotly-plot')).map(plot => [plot.id, plot.data])"


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a study's page while the command serves it."""
    command = [sys.executable, "-m", "ltmsearch", "dashboard", str(run), "--port", "0"]
    with started(command, stdout=PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[4]


@pytest.fixture(scope="module")
def address(rejecting: Path) -> Iterator[str]:
    with served(rejecting) as address:
        yield address


def plots(page: Page) -> dict[str, list[dict[str, Any]]]:
    """The traces of every plot on the page, by the plots' ids."""
    return dict(page.evaluate(PLOTS))


def infeasible(page: Page) -> dict[str, int]:
    """How many points the dashboard's own plots draw as infeasible, grey."""
    counts = {
        name: sum(len(t["x"]) for t in traces if (t.get("marker") or {}).get("color") == "#cccccc")
        for name, traces in plots(page).items()
    }
    return {name: count for name, count in counts.items() if count}


def test_main_page_shows_fronts_and_infeasible_trials(browse: Browse, address: str, rejecting: Path) -> None:
    visit = browse(address, height=3000)
    front = visit.page.locator("[id='user-defined-plot:front']")
    expect(front).to_contain_text("front, ± 1 standard error")
    expect(front).to_contain_text("GFLOPs per image at 224 px")
    expect(visit.page.locator("[id='user-defined-plot:layers']")).to_contain_text("stages.2.1.transformer.0")
    expect(visit.page.locator("#graph-timeline")).to_contain_text("Infeasible")
    expect(visit.page.get_by_text("(nats)").first).to_be_visible()  # named, not "Objective 0"
    run = Run.open(rejecting)
    records, shown = run.trials, plots(visit.page)
    rings = [t for t in shown["user-defined-plot:front"] if str(t.get("name")).startswith("front")]
    assert sorted(cost for ring in rings for cost in ring["x"]) == sorted(record.gflops for record in run.front)
    over = sum(record.state == "scored" and not record.feasible for record in records)
    assert over == 1, "the plain net"
    assert infeasible(visit.page) == {"graph-pareto-front": over, "plot-history": over, "graph-timeline": over}
    (pruned,) = [t for t in shown["graph-timeline"] if t.get("name") == "Pruned"]
    assert len(pruned["x"]) == sum(record.state == "over budget" for record in records) > 0
    assert visit.problems == []


def test_study_note_links_to_the_front(browse: Browse, address: str, rejecting: Path) -> None:
    visit = browse(f"{address}/note", height=1600)
    expect(visit.page.get_by_role("heading", name="Reading this page")).to_be_visible()
    best = Run.open(rejecting).front[0]
    row = visit.page.locator("tr").filter(has_text=f"{best.gflops:.4f}").first
    expect(row).to_contain_text(f"{best.report_top1:.1f} ±")
    row.get_by_role("link").first.click()
    expect(visit.page.get_by_role("heading", name=f"Trial {best.trial} (")).to_be_visible()
    expect(visit.page.get_by_text("on the front.")).to_be_visible()
    assert visit.problems == []


def test_trial_page_shows_note_attributes_and_files(browse: Browse, address: str, rejecting: Path) -> None:
    record = next(r for r in Run.open(rejecting).trials if r.kind == "searched" and r.state == "scored")
    visit = browse(f"{address}/trials?numbers={record.trial}", height=2600)
    page = visit.page
    layer = page.locator("tr").filter(has_text="stages.3.1.transformer.0")
    expect(layer).to_contain_text(f"{record.schedule.keep_ratios['stages.3.1.transformer.0']:g}")
    expect(layer).to_contain_text("→")
    expect(page.get_by_text("validation images, final weights")).to_have_count(int(record.rescored_loss is not None))
    expect(page.get_by_text(f"gflops {record.gflops}")).to_be_visible()
    for name in ("schedule", "recipe", "merges"):
        expect(page.get_by_text(f"{name}-{record.trial}.").first).to_be_visible()
    picture = page.locator("img").first
    expect(picture).to_be_visible()
    page.wait_for_function("document.querySelector('img').naturalWidth > 300")
    with page.expect_download() as download:
        page.locator(f"a[download='recipe-{record.trial}.yaml']").click()
    assert "schedule:" in Path(download.value.path()).read_text()
    assert visit.problems == []


def finished_trials(run: Path) -> int:
    """Number of finished trials of a search."""
    with closing(sqlite3.connect(run / "study.db", timeout=30)) as database:
        try:
            return int(database.execute("SELECT COUNT(*) FROM trials WHERE datetime_complete NOT NULL").fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0


def wait_for_trials(run: Path, number: int, search: Process) -> None:
    deadline = time.monotonic() + 240
    while not (run / "study.db").is_file() or finished_trials(run) < number:
        assert search.poll() is None, "the search ended"
        assert time.monotonic() < deadline, f"no {number} trials in time"
        time.sleep(0.5)


def test_a_running_search_is_shown(browse: Browse, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {**TINY, "trials": 2000, "sampler": "random", "out": run}
    command = [sys.executable, "-m", "ltmsearch", "run", "--quiet"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    with started(command, env=ENVIRONMENT, stderr=DEVNULL) as search:
        wait_for_trials(run, 4, search)
        with served(run) as address:
            visit = browse(address, height=3000)
            expect(visit.page.locator("#graph-pareto-front .scatterlayer .point").nth(2)).to_be_visible()
            assert infeasible(visit.page)["graph-pareto-front"] == 1, "the plain net"
            trial = browse(f"{address}/trials?numbers=2", height=2600)
            expect(trial.page.get_by_text("within the budget.")).to_be_visible()
            expect(trial.page.get_by_text("merges-2.").first).to_be_visible()
            note = browse(f"{address}/note")
            expect(note.page.get_by_text("The front is shown here at the end of the search")).to_be_visible()
            before = finished_trials(run)
            wait_for_trials(run, before + 3, search)
            # The page asks again by itself.
            expect(trial.page.get_by_text(f"Trial {before + 2}", exact=True)).to_be_visible(timeout=60_000)
            assert [v.problems for v in (visit, trial, note)] == [[], [], []]
        assert search.poll() is None, "the dashboard does not disturb the search"
        search.send_signal(signal.SIGINT)
        search.wait(timeout=60)
    assert search.returncode == 1
