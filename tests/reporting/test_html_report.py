"""The report of a run: what stands in it, for whatever run, and that it needs nothing from elsewhere."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.records import make_record

from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.reporting.findings import find
from ltmsearch.reporting.html import PAGE, write_page
from ltmsearch.reporting.html.head import make_head
from ltmsearch.reporting.html.parts import Chapter, duration
from ltmsearch.reporting.html.render import make_chapters
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.timing import Stint, Times

LAYERS = ("stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0")
ALWAYS = ["front", "growth", "layers", "information", "scores", "times", "settings"]


def settings(**changes: Any) -> ResolvedSettings:
    given = {"backbone": "mobilevit_s", "budget_gflops": 1.2, "study": "s", **changes}
    return StudySettings.make("test", **given).resolved("cpu")


def trial(number: int, gflops: float, top1: float | None, rescored: float | None = None, **fields: Any) -> TrialRecord:
    defaults: dict[str, Any] = {
        "kind": "searched", "state": "over budget" if top1 is None else "scored", "feasible": gflops <= 1.2,
        "top1_se": None if top1 is None else 1.1, "loss": None if top1 is None else 0.9,
        "rescored_top1_se": None if rescored is None else 0.7, "rescored_loss": None if rescored is None else 0.8,
        "mi_x": None if top1 is None else number / 1000, "mi_y": None if top1 is None else 0.1,
        "ibb": None if top1 is None else -0.05, "ib_weight": 0.0, "seconds": None if top1 is None else 2.0,
        "keep_ratios": dict(zip(LAYERS, (1.0, 0.5, 0.7), strict=True)),
    }  # fmt: skip
    return make_record(trial=number, gflops=gflops, top1=top1, rescored_top1=rescored, **(defaults | fields))


PLAIN = trial(0, 1.5467, 86.0, 87.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0))
UNIFORM = trial(1, 1.15, 79.0, 81.0, kind="baseline", label="uniform 0.5", keep_ratios=dict.fromkeys(LAYERS, 0.5))
START_UP, BEST = trial(2, 1.10, 78.0, 80.0, kind="start-up"), trial(3, 1.18, 82.0, 84.0, forms={LAYERS[1]: "hard"})
OPEN, OVER = trial(4, 1.17, 77.0), trial(5, 1.21, None)
RECORDS = [PLAIN, UNIFORM, START_UP, BEST, OPEN, OVER]

STARTED = datetime(2026, 11, 26, 18, 0, tzinfo=UTC)
STINT = Stint(started=STARTED, device="a <fast> machine", versions={"torch": "2.9"}, seconds={"warm-up": 90.0})
TIMES = Times(stints=(STINT, STINT.model_copy(update={"seconds": {"warm-up": 0.0, "training trials": 30.0}})))

UNKNOWN = Times()


def told(records: list[TrialRecord], given: ResolvedSettings, times: Times = UNKNOWN) -> dict[str, Chapter]:
    findings = find(records, given.axis.name)
    return {chapter.anchor: chapter for chapter in make_chapters(records, given, findings, times)}


def page(folder: Path, records: list[TrialRecord], given: ResolvedSettings, times: Times = UNKNOWN) -> str:
    path = write_page(records, given, find(records, given.axis.name), times, folder)
    assert path == folder / PAGE
    assert path.stat().st_size < 6_000_000
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The tags of a page, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._quiet = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data


def test_every_chapter_stands_in_the_page_and_in_its_contents(tmp_path: Path) -> None:
    tags = Tags(page(tmp_path, RECORDS, settings(), TIMES)).tags
    anchors = [str(a["href"]) for tag, a in tags if tag == "a"]
    headings = [a["id"] for tag, a in tags if tag == "h2"]
    assert headings == ["found", *ALWAYS]
    assert anchors == ["#main", *(f"#{heading}" for heading in headings)]
    assert {a["id"] for _, a in tags if "id" in a} >= {anchor[1:] for anchor in anchors}
    plots = [a for tag, a in tags if tag == "div" and a.get("class") == "plot"]
    assert len(plots) == 8
    assert all(a["aria-label"] for a in plots)


def test_nothing_is_fetched_from_anywhere(tmp_path: Path) -> None:
    text = page(tmp_path, RECORDS, settings())
    tags = Tags(text).tags
    assert not [(tag, a) for tag, a in tags if "src" in a or "srcset" in a or tag in ("iframe", "object", "embed")]
    assert [a["href"] for tag, a in tags if "href" in a and tag != "a"] == ["data:,"]
    assert "default-src 'none'" in text
    styles = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert styles is not None
    assert "url(" not in styles[1]
    assert "@import" not in styles[1]
    assert text.count("<script>") == 2
    assert [path.name for path in tmp_path.iterdir()] == [PAGE]


def test_names_that_look_like_html_are_shown_as_they_are(tmp_path: Path) -> None:
    nasty = '<img src=x onerror="alert(1)"> & </script><b>'
    records = [trial(0, 1.1, 80.0, 81.0, kind="baseline", label=nasty), trial(1, 1.0, 79.0, 80.0, label=nasty)]
    given = settings(data_dir=f"cats/{nasty.replace('/', '|')}", dataset="folder")
    plain, text = (page(tmp_path, records, s, TIMES) for s in (settings(), given))
    assert [tag for tag, _ in Tags(text).tags] == [tag for tag, _ in Tags(plain).tags]
    assert not [a for tag, a in Tags(text).tags if tag in ("img", "b")]
    assert nasty in Tags(text).text
    assert nasty.replace("/", "|") in Tags(text).text
    assert "a <fast> machine" in Tags(text).text
    figures = re.search(r"^const figures = \{(.*?)^\};", text, re.DOTALL | re.MULTILINE)
    assert figures is not None
    assert "</" not in figures[1]


def test_the_head_tells_the_front_and_what_it_is_compared_with() -> None:
    head = make_head(RECORDS, settings(), find(RECORDS), TIMES)
    assert head.title == "mobilevit_s with ltm merging"
    assert head.front.caption == "The front, 3 trials, best first"
    assert head.front.headings == (
        "trial", "GFLOPs", "top-1, %", "loss", "IB weight", "stages.2.1.transformer", "stages.3.1.transformer",
    )  # fmt: skip
    front, compared = head.front.groups
    assert front[0] == ("3", "1.1800", "84.0 ± 0.7", "0.8000", "0", "1 .5h", ".7")
    assert [row[0] for row in front] == ["3", "1", "2"]
    assert [row[0] for row in compared] == ["0, plain (over budget)", "1, uniform 0.5"]
    facts = dict(head.facts)
    assert facts["Trials"] == "5 scored, 1 rejected over the budget"
    assert facts["Took"] == "2 min 0 s"
    assert facts["When"] == "2026-11-26 18:00 +0000, continued 1 time, last 2026-11-26 18:00 +0000"
    assert facts["Budget"] == "1.2 GFLOPs per image (one multiply-add = one FLOP)"
    assert "hard form" in head.notes[0]


def test_the_top1_that_the_front_goes_by_is_told_beside_the_measured_one() -> None:
    records = [replace(record, expected_top1=(record.rescored_top1 or 0) - 0.55) for record in (PLAIN, UNIFORM, BEST)]
    head = make_head(records, settings(), find(records), Times())
    assert head.front.headings[2:5] == ("top-1, %", "loss", "expected top-1, %")
    assert head.front.groups[0][0][2:5] == ("84.0 ± 0.7", "0.8000", "83.5")
    assert head.front.groups[1][0][4] == "86.5"
    assert any(note.startswith("expected: the mean") for note in head.notes)
    assert "to 83.5 % at 1.1800 GFLOPs" in told(records, settings())["front"].plots[0].alternative


def test_a_reference_that_was_not_scored_again_is_marked() -> None:
    records = [trial(0, 1.5, 86.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0)), BEST]
    head = make_head(records, settings(), find(records), Times())
    assert head.front.groups[1][0][2] == "86.0 ± 1.1 *"
    assert any(note.startswith("* scored when the trial ran") for note in head.notes)
    assert dict(head.facts)["Took"] == "not known"


def test_captions_tell_the_numbers_of_their_figures() -> None:
    chapters = told(RECORDS, settings(), TIMES)
    assert "1.2000 GFLOPs, and 77.0 %, the lowest top-1 within the budget" in chapters["growth"].paragraphs[0]
    # First scores 86, 79, 78, 82 and final ones 87, 81, 80, 84 are in one order.
    assert "Kendall tau 1.00 over 4 trials" in chapters["scores"].paragraphs[0]
    # All have one I(X̃;Y).
    assert "no Kendall tau, for want of an order among 5 trials" in chapters["information"].paragraphs[1]
    assert [table.caption for table in chapters["times"].tables] == ["Parts", "Calls"]
    assert chapters["times"].tables[0].groups[0] == (
        ("warm-up", "1 min 30 s", "75.0%"), ("training trials", "30.0 s", "25.0%"),
    )  # fmt: skip
    assert ("backbone", "mobilevit_s") in chapters["settings"].tables[0].groups[0]
    assert chapters["settings"].tables[1].groups[0] == (("torch", "2.9"),)
    assert "trial 5 over" not in chapters["front"].plots[0].alternative
    assert "the front has 3 points, from 80.0 % at 1.1000 GFLOPs to 84.0 %" in chapters["front"].plots[0].alternative


def test_runs_made_before_times_were_kept_say_so() -> None:
    chapters = told(RECORDS, settings())
    assert chapters["times"].plots == ()
    assert chapters["times"].paragraphs[0].endswith("before they were kept. Its trials took 10.0 s in all.")
    assert "not known" in chapters["settings"].paragraphs[0]


def timed(number: int, top1: float, predicted: float, measured: float | None) -> TrialRecord:
    error = None if measured is None else 0.1
    return trial(
        number, 1.0, top1, top1, latency_ms=predicted, latency_measured_ms=measured, latency_measured_se_ms=error
    )


def test_latency_stands_in_the_page_where_it_has_a_budget() -> None:
    given = settings(budget_ms=10.0, budget_gflops=None)
    records = [timed(1, 80.0, 8.8, 8.0), timed(2, 82.0, 9.9, 11.0)]
    chapters = told(records, given)
    assert list(chapters) == ["front", "growth", "layers", "latency", *ALWAYS[3:]]
    assert "off by 10.0% on average" in chapters["latency"].paragraphs[0]
    assert chapters["latency"].tables[0].groups[0] == (
        ("1", "searched", "8.80", "8.00 ± 0.10", "+10.0%", ""),
        ("2", "searched", "9.90", "11.00 ± 0.10", "−10.0%", "yes"),
    )
    names = {trace["name"] for trace in json.loads(chapters["latency"].plots[0].figure)["data"]}
    assert names >= {"equal", "front", "searched"}
    head = make_head(records, given, find(records, "latency_ms"), Times())
    assert head.front.headings[:4] == ("trial", "GFLOPs", "ms, predicted", "ms, measured")
    assert head.front.groups[0][0][:4] == ("2", "1.0000", "9.90", "11.00 ± 0.10 !")


def test_another_machines_latency_was_not_timed_and_that_is_told() -> None:
    chapters = told([timed(1, 80.0, 8.8, None)], settings(budget_ms=10.0, budget_gflops=None))
    assert chapters["latency"].plots == ()
    assert chapters["latency"].paragraphs[0].startswith("Nothing was timed at the close")


@pytest.mark.parametrize(
    "records",
    [[], [OVER], [PLAIN], [OPEN], [BEST], [trial(0, 1.1, None, state="failed", feasible=True)]],
    ids=["none", "rejected", "plain", "not scored again", "one", "failed"],
)
def test_a_study_with_hardly_any_trial_has_a_page(tmp_path: Path, records: list[TrialRecord]) -> None:
    text = page(tmp_path, records, settings(), TIMES)
    assert [a["id"] for tag, a in Tags(text).tags if tag == "h2"] == ["found", *ALWAYS]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.96, "1 min 0 s"), (59.9, "59.9 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words
