"""Fronts with tokens sent as a third objective: table, plots, findings, report and notes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from rich.console import Console
from support.records import LAYERS, make_run, make_trial

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.objective import CostAxis
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.reporting.convergence import growth
from ltmsearch.reporting.dashboard.notes import study_note
from ltmsearch.reporting.findings import find, findings_of, findings_record, sentences
from ltmsearch.reporting.html.chapters import make_chapters
from ltmsearch.reporting.html.page import make_head, page_text
from ltmsearch.reporting.pareto_layout import front_layout
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.reporting.terminal import print_front
from ltmsearch.reporting.write import write_plots
from ltmsearch.search.records import TrialRecord, select_front
from ltmsearch.search.timing import Times

SENT = "tokens sent after blocks.1 (mean per image at 224 px, class and register tokens included)"


def settings(**changes: Any) -> ResolvedSettings:
    given = {"backbone": "vit_tiny_patch16_224", "budget_gflops": 1.2, "study": "s", "split_layer": "blocks.1"}
    given |= {"objective": "kl"}
    return StudySettings.make("test", **given | changes).resolved("cpu")


def trial(number: int, gflops: float, top1: float | None, sent: float, **fields: Any) -> TrialRecord:
    """A finalist: its loss is (100 − top1) / 20 nats, on all images, and its KL divergence half of that."""
    return make_trial(number, gflops, top1, top1, tokens_sent=sent, **fields)


AXIS = settings().axis
PLAIN = trial(0, 1.5, 90.0, 199.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0))
BEST, FEWER, CHEAP = trial(1, 1.1, 86.0, 199.0), trial(2, 1.15, 84.0, 61.25), trial(3, 0.8, 80.0, 120.0)
BEATEN, OVER = trial(4, 1.15, 79.0, 121.0), trial(5, 1.3, None, 150.0)
RECORDS = [PLAIN, BEST, FEWER, CHEAP, BEATEN, OVER]
"""The front is BEST, FEWER (which costs more than BEST and sends less) and CHEAP."""


def points(figure: go.Figure, name: str) -> list[float]:
    return list(next(trace for trace in figure.data if trace.name == name).x)


def test_axes_follow_from_the_settings() -> None:
    assert AXIS.costs == ("gflops", "tokens_sent")
    assert AXIS.second is not None
    assert AXIS.second.title == SENT
    assert AXIS.swapped.costs == ("tokens_sent", "gflops")
    assert AXIS.swapped.swapped == AXIS
    assert settings(split_layer=None).axis.costs == ("gflops",)
    assert settings(budget_gflops=None, budget_ms=9.0).axis.costs == ("latency_ms", "tokens_sent")
    with pytest.raises(ValueError, match="second cost"):
        CostAxis().swapped  # noqa: B018
    assert [axis.text(61.25) for axis in AXIS.axes] == ["61.2500 GFLOPs", "61.2 tokens sent"]


def test_studies_of_other_split_layers_have_other_names() -> None:
    names = {settings(study=None, split_layer=layer).study for layer in (None, "blocks.1", "blocks.2")}
    assert len(names) == 3


def test_front_is_sorted_by_the_measure_and_decided_by_all_costs() -> None:
    assert select_front(RECORDS, AXIS) == [BEST, FEWER, CHEAP]
    assert select_front(RECORDS, replace(AXIS, second=None)) == [BEST, CHEAP]
    same = replace(FEWER, trial=1000)
    assert select_front([same, *RECORDS], AXIS) == [BEST, FEWER, CHEAP], "of equal trials the earlier one"


def test_table_has_the_tokens_and_their_meaning() -> None:
    stream = io.StringIO()
    print_front(Console(file=stream, width=100), RECORDS, axis=AXIS)
    lines = stream.getvalue().splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[:4] for row in cells] == [
        ["1", "1.1000", "199", "86.0 ± 0.7"],
        ["2", "1.1500", "61.2", "84.0 ± 0.7"],
        ["3", "0.8000", "120", "80.0 ± 0.7"],
        ["0", "1.5000", "199", "90.0 ± 0.7"],
    ]
    assert SENT in lines


def test_plots_colour_one_cost_and_mark_what_it_decides() -> None:
    layout, figure = front_layout(RECORDS, AXIS), front_figure(RECORDS, axis=AXIS)
    assert layout.front == (CHEAP, BEST, FEWER)
    assert layout.by_second == (FEWER,)
    assert layout.line == ((0.8, -7.0), (1.1, -1.0)), "the best by cost alone"
    searched = next(trace for trace in figure.data if trace.name == "searched")
    assert (searched.x, searched.marker.color) == ((1.1, 1.15, 0.8, 1.15), (199.0, 61.25, 120.0, 121.0))
    assert searched.marker.coloraxis == "coloraxis"
    assert figure.layout.coloraxis.colorbar.title.text == "tokens sent"
    assert "tokens sent: 61.2" in searched.hovertext[1]
    assert points(figure, "front, ± 1 standard error") == [0.8, 1.1]
    assert points(figure, "front only by tokens sent") == [1.15]
    other = front_figure(RECORDS, axis=AXIS.swapped)
    assert other.layout.xaxis.title.text == SENT
    assert points(other, "front, ± 1 standard error") == [61.25, 199.0]
    assert points(other, "front only by GFLOPs") == [120.0]
    alone = front_figure(RECORDS, axis=settings(split_layer=None).axis)
    assert not any(getattr(trace.marker, "coloraxis", None) for trace in alone.data)
    assert "front only by tokens sent" not in {trace.name for trace in alone.data}


def test_files_have_a_second_plot(tmp_path: Path) -> None:
    write_plots(RECORDS, find(RECORDS, AXIS), tmp_path, "t", callbacks=Callbacks(), png=False)
    assert {path.name for path in tmp_path.iterdir()} == {"front.html", "front_tokens.html", "layers.html"}
    one = find(RECORDS, settings(split_layer=None).axis)
    write_plots(RECORDS, one, tmp_path / "two", "t", callbacks=Callbacks(), png=False)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"front.html", "layers.html"}


def test_hypervolume_is_a_volume() -> None:
    """Bounded by 1.2 GFLOPs, the median KL of 0.35, 0.4, 0.5 and 0.525 nats, and 1.1 · 199 = 218.9 tokens."""
    found = growth(RECORDS, AXIS)
    assert found.reference == pytest.approx((1.2, 0.45, 218.9))
    first = 0.1 * 0.1 * (218.9 - 199)
    second = first + 0.05 * 0.05 * (199 - 61.25)
    assert found.values == pytest.approx((0, first, second, second, second)), "CHEAP is above the median"


def test_findings_tell_the_tokens() -> None:
    found = find(RECORDS, AXIS)
    assert (found.front, found.by_tokens) == ((CHEAP, BEST, FEWER), (FEWER,))
    assert (
        sentences(found)[1]
        == "Points of the front send 61.2 to 199 tokens; 1 of 3 is on it only because of fewer tokens."
    )
    record = findings_record(found)
    assert record["on_front_by_tokens_sent"] == [2]
    assert [point["tokens_sent"] for point in record["front"]] == [120.0, 199.0, 61.25]
    assert "tokens" not in " ".join(sentences(find([replace(r, tokens_sent=None) for r in RECORDS], CostAxis())))


def test_report_has_the_tokens(tmp_path: Path) -> None:
    run = make_run(tmp_path, settings(), RECORDS)
    findings = findings_of(run)
    head, chapters = make_head(run, findings, Times()), make_chapters(run, findings, Times())
    assert ("Split layer", "blocks.1") in head.facts
    assert head.front is not None
    assert head.front.headings[:3] == ("trial", "GFLOPs", "tokens sent")
    found = {chapter.anchor: chapter for chapter in chapters}
    assert list(found)[:3] == ["front", "tokens", "layers"]
    assert found["front"].tables[0].groups[0][2][2:4] == ("1.1500", "61.2")
    assert f"against {SENT}: the front has 3 points, from −3.0 at 61.2" in found["tokens"].plots[0].alternative
    assert "volume between the trials so far" in found["growth"].paragraphs[0]
    assert "218.9 tokens sent, 1.1 times the most" in found["growth"].paragraphs[0]
    assert found["growth"].plots[0].figure.layout.yaxis.title.text == "hypervolume, GFLOPs × tokens sent × nats"
    assert found["growth"].tables[0].groups[0][0] == ("1", "searched", "1.1000", "199", "0.3500", f"{0.01 * 19.9:.4g}")


@pytest.mark.parametrize("records", [[], [OVER], [PLAIN], [BEST]], ids=["none", "rejected", "plain", "one"])
def test_a_study_with_few_trials_has_a_page(tmp_path: Path, records: list[TrialRecord]) -> None:
    assert 'id="tokens"' in page_text(make_run(tmp_path, settings(), records))


def test_note_of_the_study_has_the_tokens() -> None:
    note = study_note(settings(), RECORDS, find(RECORDS, AXIS), base_gflops=1.5, link=str)
    assert "| split layer\u2003 | blocks.1\u2003 |" in note
    assert "| trial\u2003 | GFLOPs\u2003 | tokens sent\u2003 |" in note
    assert SENT in note
    assert "`tokens_sent`" in note
    assert "KL divergence from the plain network in nats" in note
