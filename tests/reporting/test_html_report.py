"""The report's content and its safety: it needs nothing from elsewhere."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.records import (
    BEST,
    LAYERS,
    OPEN,
    OVER,
    PLAIN,
    RECORDS,
    UNIFORM,
    make_answers,
    make_latency_trial,
    make_run,
    make_trial,
    reported,
)

from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.reporting.examples import (
    EXAMPLES,
    Example,
    Examples,
    Picture,
    answers_digest,
    changes_of,
    write_examples,
)
from ltmsearch.reporting.findings import findings_of
from ltmsearch.reporting.html import PAGE, write_page
from ltmsearch.reporting.html.chapters import make_chapters
from ltmsearch.reporting.html.elements import Chapter
from ltmsearch.reporting.html.page import Head, make_head
from ltmsearch.search.answers import Answers
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.timing import TIMES, Stint, Times

ANCHORS = ["front", "layers", "growth", "information", "scores", "times", "settings"]
STINT = Stint(
    started=datetime(2026, 11, 26, 18, 0, tzinfo=UTC),
    device="a <fast> machine",
    versions={"torch": "2.9"},
    seconds={"warm-up": 90.0},
)
CALLS = Times(stints=(STINT, STINT.model_copy(update={"seconds": {"warm-up": 0.0, "training trials": 30.0}})))
UNKNOWN = Times()


def settings(**changes: Any) -> ResolvedSettings:
    given = {"backbone": "mobilevit_s", "budget_gflops": 1.2, "study": "s", "objective": "kl", **changes}
    return StudySettings.make("test", **given).resolved("cpu")


def chapters(
    folder: Path,
    records: list[TrialRecord],
    times: Times = UNKNOWN,
    answers: Answers | None = None,
    **changes: Any,
) -> tuple[Head, dict[str, Chapter]]:
    run = make_run(folder, settings(**changes), records, answers)
    findings = findings_of(run)
    found = make_chapters(run, findings, times)
    return make_head(run, findings, times), {chapter.anchor: chapter for chapter in found}


def page(
    folder: Path,
    records: list[TrialRecord],
    times: Times = UNKNOWN,
    answers: Answers | None = None,
    **changes: Any,
) -> str:
    run = make_run(folder, settings(**changes), records, answers)
    (folder / TIMES).write_text(times.model_dump_json())
    path = write_page(run)
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


def test_page_has_all_chapters_and_fetches_nothing(tmp_path: Path) -> None:
    text = page(tmp_path, RECORDS, CALLS)
    tags = Tags(text).tags
    headings = [a["id"] for tag, a in tags if tag == "h2"]
    assert headings == ["found", *ANCHORS]
    assert [a["href"] for tag, a in tags if tag == "a"] == ["#main", *(f"#{heading}" for heading in headings)]
    plots = [a for tag, a in tags if tag == "div" and a.get("class") == "plot"]
    assert len(plots) == 8
    assert all(a["aria-label"] for a in plots)
    assert not [(tag, a) for tag, a in tags if "src" in a or "srcset" in a or tag in ("iframe", "object", "embed")]
    assert [a["href"] for tag, a in tags if "href" in a and tag != "a"] == ["data:,"]
    assert "default-src 'none'" in text
    styles = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert styles is not None
    assert "url(" not in styles[1]
    assert "@import" not in styles[1]
    assert text.count("<script>") == 2


def test_names_with_markup_are_escaped(tmp_path: Path) -> None:
    nasty = '<img src=x onerror="alert(1)"> & </script><b>'
    records = [make_trial(n, 1.1 - n / 10, 80.0 - n, 81.0 - n, kind="baseline", label=nasty) for n in range(2)]
    folder = nasty.replace("/", "|")
    plain = page(tmp_path / "plain", records, CALLS)
    text = page(tmp_path / "folder", records, CALLS, data_dir=f"cats/{folder}", dataset="folder")
    assert [tag for tag, _ in Tags(text).tags] == [tag for tag, _ in Tags(plain).tags]
    assert all(words in Tags(text).text for words in (nasty, folder, "a <fast> machine"))
    figures = re.search(r"^const figures = \{(.*?)^\};", text, re.DOTALL | re.MULTILINE)
    assert figures is not None
    assert "</" not in figures[1]


def test_head_shows_front_and_facts(tmp_path: Path) -> None:
    head, _ = chapters(tmp_path, RECORDS, CALLS)
    assert head.title == "mobilevit_s with ltm merging"
    assert head.front is not None
    assert head.front.caption == "Front: 3 of 6 trials, budget 1.2 GFLOPs"
    columns = ("trial", "GFLOPs", "top-1 %", "− plain", "KL", "IB weight")
    assert head.front.headings == columns
    front, compared = head.front.groups
    assert front[0] == ("3", "1.1800", "84.0 ± 0.7", "−3.0 ± 0.4", "0.4000", "0.125")
    assert head.schedules is not None
    assert head.schedules.caption == "Their keep ratios"
    assert head.schedules.headings == ("trial", "stages.2.1.transformer", "stages.3.1.transformer")
    assert head.schedules.groups[0][0] == ("3", "1 .5h", ".7")
    assert [row[0] for row in front] == ["3", "1", "2"]
    assert [row[0] for row in compared] == ["0, plain (over budget)", "1, uniform 0.5"]
    facts = dict(head.facts)
    assert facts["Trials"] == "5 scored, 1 rejected over the budget"
    assert facts["Duration"] == "2 min 0 s"
    assert facts["Started"] == "2026-11-26 18:00 +0000, resumed 1 time, last 2026-11-26 18:00 +0000"
    assert facts["Budget"] == "1.2 GFLOPs per image (one multiply-add = one FLOP)"


def test_head_starts_with_the_verdict(tmp_path: Path) -> None:
    answers = make_answers(RECORDS)
    records = reported(RECORDS, answers)
    head, found = chapters(tmp_path, records, answers=answers)
    assert head.verdict.startswith("Take trial 3 (1.1800 GFLOPs)")
    assert "less trial 1 (uniform 0.5) is +3.0 ±" in head.verdict
    assert head.findings.startswith("All 3 points of the front merge")
    assert head.front is not None
    assert head.front.groups[0][0][0] == "→ 3"
    assert any("on 1000 images that neither search nor choice saw" in caption for caption in head.captions)
    assert "with the final weights on 1000 images" in found["front"].paragraphs[0]
    assert "3, recommended" in [each.text for each in found["front"].plots[0].figure.layout.annotations]
    text = page(tmp_path / "page", records, answers=answers)
    assert head.verdict in Tags(text).text
    early, _ = chapters(tmp_path / "early", RECORDS)
    assert early.verdict == ""
    assert 'class="findings verdict"' not in page(tmp_path / "page of early", RECORDS)


def test_networks_are_set_against_the_best_baseline(tmp_path: Path) -> None:
    answers = make_answers(RECORDS)
    _, found = chapters(tmp_path, reported(RECORDS, answers), answers=answers)
    assert "trial 1 (uniform 0.5, 1.1500 GFLOPs)" in found["against"].paragraphs[0]
    rows = found["against"].tables[0].groups[0]
    assert [row[0] for row in rows] == ["2", "3"], "the front without the best baseline, from the cheapest"
    least, most = answers.difference(3, 1).interval()
    assert rows[1][3:] == (str(answers.difference(3, 1)), f"+{least:.1f}", f"+{most:.1f}")
    marks = found["against"].plots[0].figure.data
    assert [(mark.name, list(mark.x)) for mark in marks if mark.x] == [
        ("searched", [answers.difference(3, 1).value]),
        ("start-up", [answers.difference(2, 1).value]),
    ]


def test_examples_are_shown_with_their_answers(tmp_path: Path) -> None:
    answers = make_answers(RECORDS)
    picture = Picture(words=("blocks.<0>", "64 to 32 tokens"), png="data:image/png;base64,AAAA")
    shown = [("shirt", "shirt", "dr<ess"), ("shirt", "dress", "shirt"), ("shirt", "hat", "hat")]
    examples = [
        Example(image=n, label=label, plain=plain, merged=merged, pictures=(picture,))
        for n, (label, plain, merged) in enumerate(shown)
    ]
    drawn = Examples(trial=3, digest=answers_digest(answers, 3), examples=tuple(examples))
    write_examples(drawn, tmp_path / EXAMPLES)
    text = page(tmp_path, reported(RECORDS, answers), answers=answers)
    words = " ".join(Tags(text).text.split())
    assert "Changed: the plain network answers shirt (right), the merged one dr<ess" in words
    assert "Changed: the plain network answers dress, the merged one shirt (right)" in words
    assert "Same answer: both networks answer hat; right is shirt" in words
    found = changes_of(answers, 3)
    assert f"Trial 3 answers {found.changed} of 1000 reported images otherwise" in words
    assert [a["src"] for tag, a in Tags(text).tags if tag == "img"] == [picture.png] * 3
    write_examples(drawn.model_copy(update={"digest": "of other answers"}), tmp_path / EXAMPLES)
    older = Tags(page(tmp_path, reported(RECORDS, answers), answers=answers)).tags
    assert not [tag for tag, _ in older if tag == "img"], "drawn before it scored again"


def test_scores_are_in_both_tables(tmp_path: Path) -> None:
    head, found = chapters(tmp_path, [PLAIN, UNIFORM, replace(BEST, agreement=93.24, agreement_se=1.26), OPEN])
    assert head.front is not None
    assert head.front.headings[4] == "agreement %"
    assert [row[4] for row in head.front.groups[0]] == ["93.2 ± 1.3", ""]
    assert any("agreement: " in caption for caption in head.captions)
    (table,) = found["front"].tables
    assert table.headings == (
        "trial", "kind", "GFLOPs", "KL when it ran, nats", "top-1 when it ran, %", "final KL, nats",
        "reported top-1, %", "less plain, points", "agreement, %", "on front", "within budget",
    )  # fmt: skip
    assert table.groups[0][2:] == (
        ("3", "searched", "1.1800", "0.4500", "82.0 ± 1.1", "0.4000", "84.0 ± 0.7", "−3.0 ± 0.4", "93.2 ± 1.3", "yes",
         "yes"),
        ("4", "searched", "1.1700", "0.5750", "77.0 ± 1.1", "", "", "", "", "", "yes"),
    )  # fmt: skip


def test_studies_of_the_loss_show_the_loss(tmp_path: Path) -> None:
    _, found = chapters(tmp_path, RECORDS, objective="loss")
    assert "final loss, nats" in found["front"].tables[0].headings
    assert "chosen by cross-entropy on the validation images" in found["front"].paragraphs[0]
    assert "median loss of the trials" in found["growth"].paragraphs[0]
    assert found["scores"].tables[0].groups[0][0] == ("0", "plain", "0.7000", "0.6500")


def test_layers_have_the_shares_that_they_keep(tmp_path: Path) -> None:
    _, found = chapters(tmp_path, RECORDS)
    assert found["layers"].tables[0].groups[0] == (
        (LAYERS[0], "1 of 3", "0.5"),
        (LAYERS[1], "3 of 3", "0.5"),
        (LAYERS[2], "3 of 3", "0.5 to 0.7"),
    )
    (plot,) = found["layers"].plots
    assert len(plot.figure.data) == 1


def test_captions_repeat_the_numbers_of_their_figures(tmp_path: Path) -> None:
    records = [replace(r, mi_x=r.trial / 1000, mi_y=0.1, ibb=-0.05) if r.top1 else r for r in RECORDS]
    _, found = chapters(tmp_path, records, CALLS)
    # Within the budget KL was 0.525, 0.55, 0.45 and 0.575.
    assert "1.2000 GFLOPs, and the median KL of the trials within the budget, 0.5375" in found["growth"].paragraphs[0]
    # First values 0.35, 0.525, 0.55, 0.45 and final ones 0.325, 0.475, 0.5, 0.4 have the same order.
    assert "Kendall tau 1.00 over 4 trials" in found["scores"].paragraphs[0]
    assert "no Kendall tau: one of both is constant over 5 trials" in found["information"].paragraphs[1]
    # Trials 0 to 4 had 0.35, 0.525, 0.55, 0.45, 0.575: eight pairs rise with the number, and two fall.
    assert "I(X̃;X), information of the features on the image: Kendall tau 0.60" in found["information"].paragraphs[1]
    assert [table.caption for table in found["times"].tables] == ["Parts", "Calls"]
    parts = (("warm-up", "1 min 30 s", "75.0%"), ("training trials", "30.0 s", "25.0%"))
    assert found["times"].tables[0].groups[0] == parts
    assert ("backbone", "mobilevit_s") in found["settings"].tables[0].groups[0]
    assert found["settings"].tables[1].groups[0] == (("torch", "2.9"),)
    assert "the front has 3 points, from −7.0 at 1.1000 GFLOPs to −3.0 at" in found["front"].plots[0].alternative


def test_runs_without_times_have_a_note(tmp_path: Path) -> None:
    records = [replace(BEST, seconds=4.0), replace(UNIFORM, seconds=6.0)]
    head, found = chapters(tmp_path, records)
    assert dict(head.facts)["Duration"] == "not recorded"
    assert found["times"].plots == ()
    assert found["times"].paragraphs[0].endswith("did not record times. Its trials took 10.0 s in total.")
    assert "did not record" in found["settings"].paragraphs[0]


def test_latency_budgets_have_a_chapter(tmp_path: Path) -> None:
    records = [make_latency_trial(1, 8.8, 80.0, 8.0), make_latency_trial(2, 9.9, 82.0, 11.0)]
    head, found = chapters(tmp_path, records, budget_ms=10.0, budget_gflops=None)
    assert list(found) == ["front", "layers", "growth", "latency", *ANCHORS[3:]]
    assert "mean error 10.0%" in found["latency"].paragraphs[0]
    assert found["latency"].tables[0].groups[0] == (
        ("1", "searched", "8.80", "8.00 ± 0.40", "+10.0%", ""),
        ("2", "searched", "9.90", "11.00 ± 0.40", "−10.0%", "yes"),
    )
    assert {trace.name for trace in found["latency"].plots[0].figure.data} >= {"equal", "front", "searched"}
    assert head.front is not None
    assert head.front.headings[:4] == ("trial", "GFLOPs", "predicted ms", "measured ms")
    assert head.front.groups[0][0][2:4] == ("9.90", "11.00 ± 0.40!")
    _, found = chapters(tmp_path, [make_latency_trial(1, 8.8, 80.0)], budget_ms=10.0, budget_gflops=None)
    assert found["latency"].plots == ()
    assert found["latency"].paragraphs[0].startswith("No latency was measured")


@pytest.mark.parametrize(
    "records",
    [[], [OVER], [PLAIN], [OPEN], [BEST], [make_trial(0, 1.1, None, state="failed", feasible=True)]],
    ids=["none", "rejected", "plain", "not rescored", "one", "failed"],
)
def test_a_study_with_few_trials_has_a_page(tmp_path: Path, records: list[TrialRecord]) -> None:
    text = page(tmp_path, records, CALLS)
    assert [a["id"] for tag, a in Tags(text).tags if tag == "h2"] == ["found", *ANCHORS]
