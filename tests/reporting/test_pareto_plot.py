"""The front's plot: its layout as data, and the figure."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from support.command_line import Notes
from support.processes import completed
from support.records import (
    BEST,
    LATENCIES,
    LAYERS,
    OPEN,
    OVER,
    PLAIN,
    START_UP,
    UNIFORM,
    make_answers,
    make_latency_trial,
    make_trial,
    reported,
)

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.findings import find
from ltmsearch.reporting.pareto_layout import front_layout
from ltmsearch.reporting.pareto_plot import LABELS, front_figure
from ltmsearch.reporting.verdict import judge
from ltmsearch.reporting.write import write_plots
from ltmsearch.search.curve_points import CurvePoint
from ltmsearch.search.records import TrialRecord

AXIS = CostAxis(title="GFLOPs per image at 224 px (one multiply-add = one FLOP)", budget=1.2)
FREE = CostAxis()
MS = CostAxis(name="latency_ms", title="ms per batch of 1 at 224 px, predicted (cpu, torch, fp32)", budget=20.0)
FRONT = "front, ± 1 standard error"
FAR_OVER = make_trial(6, 1.48, None)
FAILED = make_trial(7, 1.12, None, state="failed", feasible=True)
USELESS = make_trial(8, 1.14, 11.0, 12.0)
RECORDS = [BEST, PLAIN, UNIFORM, START_UP, OPEN, OVER, FAR_OVER, FAILED, USELESS]


def trace(figure: go.Figure, name: str) -> go.Scatter:
    return next(t for t in figure.data if t.name == name)


def test_every_record_is_in_one_group() -> None:
    assert front_layout(RECORDS, AXIS).marks == {
        ("searched", True): (BEST, USELESS),
        ("searched", False): (OPEN,),
        ("start-up", True): (START_UP,),
        ("baseline", True): (PLAIN, UNIFORM),
        ("over budget", False): (OVER, FAR_OVER),
        ("failed", False): (FAILED,),
    }


def test_finalists_are_drawn_on_reported_images_and_others_on_search_images() -> None:
    layout = front_layout(RECORDS, AXIS)
    # Reported less 87 %, and for the trial that is not a finalist 77 % less the plain network's 86 % when both ran.
    assert layout.heights == {3: -3.0, 0: 0.0, 1: -6.0, 2: -7.0, 4: -9.0, 8: -75.0}
    assert layout.plain == "plain network, 87.0 %, 1.5467 GFLOPs"
    assert layout.unplaced == ()


def test_without_the_plain_network_only_finalists_are_drawn() -> None:
    layout = front_layout([r for r in RECORDS if r != PLAIN], AXIS)
    assert layout.heights == {3: -3.0, 1: -6.0, 2: -7.0, 8: -75.0}
    assert layout.unplaced == (OPEN,)
    assert OPEN not in layout.hidden
    assert ("searched", False) not in layout.marks
    assert layout.plain == "plain network, 87.0 %"
    figure = front_figure([r for r in RECORDS if r != PLAIN], title="t", axis=AXIS)
    assert "not shown: 1 scored, with no plain network on the same images" in figure.layout.title.subtitle.text
    early = front_layout([OPEN, START_UP], AXIS)
    assert (early.heights, early.unplaced) == ({2: -7.0}, (OPEN,))


def test_the_line_joins_the_front_in_order_of_cost() -> None:
    layout = front_layout(RECORDS, AXIS)
    assert layout.front == (START_UP, UNIFORM, BEST)
    assert layout.line == ((1.10, -7.0), (1.15, -6.0), (1.18, -3.0))
    # The front goes by the measure: reported top-1 may fall with the cost, and the line with it.
    worse = dataclasses.replace(UNIFORM, report_top1=79.0, difference=-8.0)
    assert front_layout([BEST, PLAIN, worse, START_UP], AXIS).line == ((1.10, -7.0), (1.15, -8.0), (1.18, -3.0))


def test_view_shows_the_front_and_lists_what_is_outside() -> None:
    layout = front_layout(RECORDS, AXIS)
    assert 1.05 < layout.x_range[0] < 1.10
    assert 1.2 < layout.x_range[1] < 1.25
    # The plain network's line is in view although its cost is not; a trial far below does not flatten the others.
    assert -16 < layout.y_range[0] < -9
    assert 0 < layout.y_range[1] < 5
    assert layout.beyond == (), "the plain network has its line"
    assert layout.hidden == (FAR_OVER, USELESS)
    uniform = make_trial(9, 1.5, 80.0, 81.5, kind="baseline", label="uniform 0.9")
    assert front_layout([*RECORDS, uniform], AXIS).beyond == (uniform,)
    other = dataclasses.replace(PLAIN, report_top1=85.0, difference=-2.0)
    assert front_layout([other, *RECORDS[2:]], AXIS).beyond == (other,), "the final weights changed it"
    near = make_trial(0, 1.235, 86.0, 87.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0))
    layout = front_layout([near, *RECORDS[2:]], AXIS)
    assert layout.beyond == ()
    assert layout.x_range[0] < near.gflops < layout.x_range[1]


def test_the_plain_network_is_always_in_view() -> None:
    far = [make_trial(n, 1.0 + n / 20, 40.0 + n, 40.0 + n) for n in range(4)]
    layout = front_layout([PLAIN, *far], AXIS)
    assert layout.y_range[0] < -47 < -44 < 0 < layout.y_range[1]
    better = [make_trial(n, 1.0 + n / 20, 90.0 + n, 90.0 + n) for n in range(4)]
    assert front_layout(better, AXIS).y_range[0] < 0 < 6 < front_layout(better, AXIS).y_range[1]


@pytest.mark.parametrize("records", [[], [OVER, FAR_OVER], [OPEN], [PLAIN]], ids=["none", "rejected", "open", "plain"])
@pytest.mark.parametrize("axis", [FREE, AXIS], ids=["free", "budget"])
def test_a_study_with_few_trials_can_be_drawn(records: list[TrialRecord], axis: CostAxis) -> None:
    layout = front_layout(records, axis)
    assert layout.x_range[0] < layout.x_range[1]
    assert layout.y_range[0] < layout.y_range[1]
    assert layout.front == ()
    assert front_figure(records, title="few", axis=axis).layout.title.text == "few"


def test_labels_are_placed_where_they_cover_least() -> None:
    layout = front_layout(RECORDS, AXIS)
    labels = {label.record.trial: label for label in layout.labels}
    assert {n: label.words for n, label in labels.items()} == {1: "1", 2: "2", 3: "3"}, "numbers of the front"
    right, up = labels[3].offset
    assert right < 0 < up, "beside the rising line"
    assert not labels[3].led
    width, height = (high - low for low, high in (layout.x_range, layout.y_range))
    in_the_way = make_trial(20, BEST.gflops - 0.015 * width, 86.0 - 3.0 + 0.05 * height)
    moved = front_layout([*RECORDS, in_the_way], AXIS)
    assert (moved.x_range, moved.y_range) == (layout.x_range, layout.y_range)
    assert next(label.offset for label in moved.labels if label.record.trial == 3) != (right, up)


def test_lines_lead_out_of_a_crowd_to_labels() -> None:
    layout = front_layout(RECORDS, AXIS)
    width, height = (high - low for low, high in (layout.x_range, layout.y_range))
    around = [(across, up) for across in np.linspace(-0.05, 0.05, 21) for up in (-0.06, -0.045, 0.045, 0.06)]
    crowd = [
        make_trial(20 + n, BEST.gflops + across * width, 86.0 - 3.0 + up * height)
        for n, (across, up) in enumerate(around)
    ]
    (best,) = [label for label in front_layout([*RECORDS, *crowd], AXIS).labels if label.record.trial == 3]
    assert best.led
    figure = front_figure([*RECORDS, *crowd], axis=AXIS)
    (drawn,) = [each for each in figure.layout.annotations if (each.name, each.text) == (LABELS, "3")]
    assert (drawn.showarrow, drawn.ax, drawn.ay) == (True, best.offset[0], -best.offset[1])
    assert (drawn.x, drawn.y) == (BEST.gflops, -3.0)


def test_names_that_would_cover_others_are_left_out() -> None:
    crowd = [
        make_trial(n, 1.05 + n / 1e6, 70.0, 70.0, kind="baseline", label=f"{n} tokens per layer") for n in range(20, 42)
    ]
    named = [label.record.trial for label in front_layout([*RECORDS, *crowd], AXIS).labels]
    assert {1, 2, 3} <= set(named), "the front has all its numbers"
    assert 1 <= len(set(named) & set(range(20, 42))) <= 14


def test_figure_shows_the_layout() -> None:
    figure, layout = front_figure(RECORDS, title="mobilevit_s", axis=AXIS), front_layout(RECORDS, AXIS)
    assert figure.layout.title.text == "mobilevit_s"
    assert "224 px" in figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text == "top-1 less the plain network's, points"
    assert (figure.layout.xaxis.range, figure.layout.yaxis.range) == (layout.x_range, layout.y_range)
    assert trace(figure, "searched").y == (-3.0, -75.0)
    assert trace(figure, "rejected: over budget").x == (1.21, 1.48)
    assert trace(figure, "rejected: over budget").yaxis == "y2"
    assert trace(figure, FRONT).error_y.array == (0.4, 0.4, 0.4)
    named = {t.name for t in figure.data if t.showlegend is not False}
    assert named == {*("searched", "start-up", "baseline", "failed"), "rejected: over budget", FRONT}
    (line,) = [t for t in figure.data if t.mode == "lines"]
    assert tuple(zip(line.x, line.y, strict=True)) == layout.line
    assert line.line.shape is None, "straight"
    assert [shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1] == [0], "the plain network"
    words = " ".join(annotation.text for annotation in figure.layout.annotations)
    assert "budget<br>1.2 GFLOPs" in words
    assert "plain network, 87.0 %, 1.5467 GFLOPs" in words
    assert "1 without a score, 1 scored" in figure.layout.title.subtitle.text
    dear = make_trial(9, 1.5, 80.0, 81.5, kind="baseline", label="uniform 0.9")
    words = " ".join(each.text for each in front_figure([*RECORDS, dear], axis=AXIS).layout.annotations)
    assert "uniform 0.9: −5.5 points<br>1.5000 GFLOPs →" in words


def test_the_verdict_is_drawn() -> None:
    answers = make_answers(RECORDS, 400, apart=0.005)
    records = reported(RECORDS, answers)
    verdict = judge(records, answers, AXIS, tolerance=0.5)
    assert (verdict.recommended, verdict.not_better) == (3, {1})
    layout = front_layout(records, AXIS, verdict)
    assert [r.trial for r in layout.not_better] == [1]
    assert [label.words for label in layout.labels if label.record.trial == 3] == ["3, recommended"]
    figure = front_figure(records, axis=AXIS, verdict=verdict)
    alike = trace(figure, "front, not significantly better than a cheaper point")
    assert (trace(figure, FRONT).x, alike.x) == ((1.10, 1.18), (1.15,))
    assert alike.marker.line.width < trace(figure, FRONT).marker.line.width
    assert alike.error_y.array == (next(r.difference_se for r in records if r.trial == 1),)


def test_dashboard_figure_labels_only_the_front() -> None:
    figure = front_figure(RECORDS, title="t", axis=AXIS, place="dashboard")
    assert sorted(each.text for each in figure.layout.annotations if each.name == LABELS) == ["1", "2", "3"]
    assert figure.layout.height == 450


def test_groups_differ_in_shape_and_filling() -> None:
    marks = {}
    for t in front_figure(RECORDS, title="t", axis=FREE).data:
        if t.name and t.marker.symbol:
            marks[t.name, t.showlegend] = t.marker.symbol, t.marker.size
    assert len(set(marks.values())) == len(marks)
    assert marks["searched", True][0] == "circle"
    assert marks["searched", False][0] == "circle-open"


def test_hover_boxes_describe_a_trial() -> None:
    figure = front_figure(RECORDS, title="t", axis=AXIS)
    assert trace(figure, "searched").hovertext[0].split("<br>") == [
        "<b>trial 3</b>, searched",
        "GFLOPs: 1.1800",
        "top-1 of reported images: 84.0 ± 0.7 %",
        "top-1 less the plain network's: −3.0 ± 0.4 points",
        "validation images, final weights (version 20): KL 0.4000 nats, loss 0.8000 nats",
        "search images, when it ran (weights version 17): top-1 82.0 ± 1.1 %, KL 0.4500 nats, loss 0.9000 nats",
        "I(X̃;X), I(X̃;Y), IB bound: 3e-05, 0.333, -0.75 nats",
        "IB weight: 0.125",
        "keep ratios, 1 = no merging:",
        "  stages.2.1.transformer: 1 .5h",
        "  stages.3.1.transformer: .7",
    ]
    assert "over budget: no score" in trace(figure, "rejected: over budget").hovertext[0]
    known = dataclasses.replace(BEST, agreement=93.24, agreement_se=1.26)
    figure = front_figure([known], title="t", axis=AXIS)
    assert trace(figure, "searched").hovertext[0].split("<br>")[4] == "agreement with the plain network: 93.2 ± 1.3 %"


def test_front_html_has_the_title(tmp_path: Path) -> None:
    write_plots(RECORDS, find(RECORDS, AXIS), tmp_path, "a study", callbacks=Notes(), png=False)
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "<title>a study</title>" in page
    assert "84.0 \\u00b1 0.7 %" in page


def test_drawing_imports_neither_torch_nor_optuna() -> None:
    heavy = {"torch", "optuna", "timm", "kaleido"}
    code = f"import sys, ltmsearch.reporting.pareto_plot; print(sorted({heavy} & set(sys.modules)))"
    answer = completed([sys.executable, "-c", code])
    assert answer.stdout.strip() == "[]"


def test_latency_figure_uses_the_latency_axis() -> None:
    figure = front_figure(LATENCIES, title="t", axis=MS)
    assert figure.layout.xaxis.title.text == MS.title
    assert trace(figure, "searched").x == (19.0, 15.0, 12.0, 18.0)
    assert trace(figure, "rejected: over budget").x == (20.5,)
    assert trace(figure, FRONT).x == (12.0, 15.0, 19.0)
    assert front_layout(LATENCIES, MS).line == ((12.0, -27.0), (15.0, -17.0), (19.0, -7.0))
    (line,) = [shape for shape in figure.layout.shapes if shape.line.dash == "dash"]
    assert (line.x0, line.x1) == (20.0, 20.0)
    words = " ".join(annotation.text for annotation in figure.layout.annotations)
    assert "budget<br>20 ms" in words
    assert "plain network, 87.0 %, 40.00 ms" in words


def test_measured_latencies_are_bars_beside_the_front() -> None:
    figure = front_figure(LATENCIES, title="t", axis=MS)
    kept, broken = trace(figure, "measured"), trace(figure, "measured: over budget")
    assert (kept.x, kept.y, kept.error_x.array) == ((14.0,), (-17.0,), (0.4,))
    assert (broken.x, broken.y) == ((21.5,), (-7.0,))
    assert kept.marker.color != broken.marker.color
    lines = [(t.x, t.y) for t in figure.data if t.mode == "lines" and len(t.x) == 2]
    assert lines == [((15.0, 14.0), (-17.0, -17.0)), ((19.0, 21.5), (-7.0, -7.0))], "from predicted to measured"
    low, high = figure.layout.xaxis.range
    assert low < 12.0 < 21.5 < high
    slower = [make_latency_trial(1, 19.0, 80.0, 35.0), *LATENCIES[1:]]
    assert front_layout(slower, MS).x_range[1] > 35.0
    assert trace(figure, "searched").hovertext[0].split("<br>")[2:4] == [
        "ms per batch, predicted: 19.00",
        "ms per batch, measured: 21.50 ± 0.40",
    ]
    untimed = [dataclasses.replace(r, latency_measured_ms=None) for r in LATENCIES]
    for records, axis in ((LATENCIES, AXIS), (untimed, MS)):
        names = {t.name for t in front_figure(records, title="t", axis=axis).data}
        assert not {"measured", "measured: over budget"} & names


def test_curves_of_baselines_lead_to_the_plain_network() -> None:
    points = [
        CurvePoint(label="plain at 192 px", curve="smaller images", gflops=1.1, report_top1=82.0, difference=-5.0),
        CurvePoint(label="uniform 0.9", curve="one ratio", gflops=1.3, report_top1=86.0, difference=-1.0),
        CurvePoint(label="uniform 0.5", curve="one ratio", trial=1, gflops=1.15, report_top1=81.0, difference=-6.0),
    ]
    figure = front_figure(RECORDS, axis=AXIS, curves=points)
    ratio, smaller = trace(figure, "by hand: one ratio"), trace(figure, "by hand: smaller images")
    assert list(zip(ratio.x, ratio.y, strict=True)) == [(1.15, -6.0), (1.3, -1.0), (PLAIN.gflops, 0.0)]
    assert list(zip(smaller.x, smaller.y, strict=True)) == [(1.1, -5.0), (PLAIN.gflops, 0.0)]
    assert ratio.hovertext[1].startswith("<b>uniform 0.9</b>")
    shifted = [dataclasses.replace(PLAIN, difference=-0.5), *(r for r in RECORDS if r is not PLAIN)]
    assert front_layout(shifted, AXIS, curves=points).curves["one ratio"][-1][1] == -0.5, "with the same weights"
    low, far = (dataclasses.replace(points[2], label=f"uniform {n}", difference=n) for n in (-12.0, -60.0))
    usual = front_layout(RECORDS, AXIS).y_range
    assert front_layout(RECORDS, AXIS, curves=[low]).y_range[0] < -12 < usual[0], "curves are in view"
    assert front_layout(RECORDS, AXIS, curves=[far]).y_range == usual, "unless that would flatten the rest"
    names = {each.name for each in front_figure(LATENCIES, axis=MS, curves=points).data}
    assert not any(name and "by hand" in name for name in names), "their latency is unknown"
