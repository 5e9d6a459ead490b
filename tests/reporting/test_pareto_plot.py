import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from rich.console import Console
from support.records import make_record

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.pareto_layout import front_picture
from ltmsearch.reporting.pareto_plot import breaks_budget, front_figure, prediction_lines, print_front, write_front
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.records import TrialRecord

LAYERS = ("stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0")
BUDGET = 1.2
AXIS = CostAxis(title="GFLOPs per image at 224 px (one multiply-add = one FLOP)", budget=BUDGET)
FREE = CostAxis()
"""Without a budget."""


def trial(number: int, gflops: float, top1: float | None, rescored: float | None = None, **fields: Any) -> TrialRecord:
    """A searched trial; without a top-1 it was over budget."""
    defaults: dict[str, Any] = {
        "kind": "searched",
        "state": "over budget" if top1 is None else "scored",
        "feasible": gflops <= BUDGET,
        "top1_se": None if top1 is None else 1.1,
        "loss": None if top1 is None else 0.9,
        "rescored_top1_se": None if rescored is None else 0.7,
        "rescored_loss": None if rescored is None else 0.8,
        "keep_ratios": dict(zip(LAYERS, (1.0, 0.5, 0.7), strict=True)),
    }
    return make_record(trial=number, gflops=gflops, top1=top1, rescored_top1=rescored, **(defaults | fields))


PLAIN = trial(0, 1.5467, 86.0, 87.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0))
UNIFORM = trial(1, 1.15, 79.0, 81.0, kind="baseline", label="uniform 0.5", keep_ratios=dict.fromkeys(LAYERS, 0.5))
START_UP = trial(2, 1.10, 78.0, 80.0, kind="start-up")
BEST = trial(3, 1.18, 82.0, 84.0, ib_weight=0.125, mi_x=3e-5, mi_y=1 / 3, ibb=-0.75, supernet_version=17)
OPEN = trial(4, 1.17, 77.0)
OVER = trial(5, 1.21, None)
FAR_OVER = trial(6, 1.48, None)
FAILED = trial(7, 1.12, None, state="failed", feasible=True)
USELESS = trial(8, 1.14, 11.0, 12.0)
RECORDS = [BEST, PLAIN, UNIFORM, START_UP, OPEN, OVER, FAR_OVER, FAILED, USELESS]


def trace(figure: go.Figure, name: str) -> go.Scatter:
    return next(t for t in figure.data if t.name == name)


def test_every_record_is_in_one_set_of_marks() -> None:
    assert front_picture(RECORDS, AXIS).marks == {
        ("searched", True): (BEST, USELESS),
        ("searched", False): (OPEN,),
        ("start-up", True): (START_UP,),
        ("baseline", True): (PLAIN, UNIFORM),
        ("over budget", False): (OVER, FAR_OVER),
        ("failed", False): (FAILED,),
    }


def test_the_step_line_is_the_best_known_at_each_cost() -> None:
    picture = front_picture(RECORDS, AXIS)
    assert picture.front == (START_UP, UNIFORM, BEST)
    assert picture.step == ((1.10, 80), (1.15, 80), (1.15, 81), (1.18, 81), (1.18, 84), (1.2, 84))
    assert front_picture(RECORDS, FREE).step[-1] == (1.18, 84)


def test_the_view_is_on_the_front_and_tells_what_is_outside() -> None:
    picture = front_picture(RECORDS, AXIS)
    assert 1.05 < picture.x_range[0] < 1.10
    assert BUDGET < picture.x_range[1] < 1.25
    # The plain net's score is in view although its cost is not; a trial at 12 % does not flatten the others.
    assert 70 < picture.y_range[0] < 77.0
    assert 87.0 < picture.y_range[1] < 92
    assert picture.beyond == (PLAIN,)
    assert picture.hidden == (FAR_OVER, USELESS)


def test_a_plain_net_near_the_budget_is_simply_in_view() -> None:
    near = trial(0, 1.235, 86.0, 87.0, kind="baseline", label="plain")
    picture = front_picture([near, *RECORDS[2:]], AXIS)
    assert picture.beyond == ()
    assert picture.x_range[0] < near.gflops < picture.x_range[1]


@pytest.mark.parametrize("records", [[], [OVER, FAR_OVER], [OPEN], [PLAIN]], ids=["none", "rejected", "open", "plain"])
@pytest.mark.parametrize("axis", [FREE, AXIS], ids=["free", "budget"])
def test_a_study_with_hardly_any_trial_can_be_drawn(records: list[TrialRecord], axis: CostAxis) -> None:
    picture = front_picture(records, axis)
    assert picture.x_range[0] < picture.x_range[1]
    assert picture.y_range[0] < picture.y_range[1]
    assert picture.front == ()
    assert picture.hidden == ()
    assert front_figure(records, title="few", axis=axis).layout.title.text == "few"


def test_labels_name_the_front_and_the_baselines_where_they_cover_least() -> None:
    labels = {record.trial: (words, side) for record, words, side in front_picture(RECORDS, AXIS).labels}
    assert {number: words for number, (words, _) in labels.items()} == {1: "uniform 0.5", 2: "2", 3: "3"}
    assert labels[3][1] == "top left"
    assert labels[1][1].startswith("top")  # on the front, beside the step line


def test_a_mark_where_words_would_stand_sends_them_to_another_side() -> None:
    picture = front_picture(RECORDS, AXIS)
    width, height = (high - low for low, high in (picture.x_range, picture.y_range))
    in_the_way = trial(20, BEST.gflops - 0.015 * width, 84.0 + 0.05 * height)
    moved = front_picture([*RECORDS, in_the_way], AXIS)
    assert (moved.x_range, moved.y_range) == (picture.x_range, picture.y_range)
    assert {record.trial: side for record, _, side in moved.labels}[3] == "top right"


def test_the_figure_shows_the_record() -> None:
    figure = front_figure(RECORDS, title="mobilevit_s", axis=AXIS)
    assert figure.layout.title.text == "mobilevit_s"
    assert "224 px" in figure.layout.xaxis.title.text
    picture = front_picture(RECORDS, AXIS)
    assert figure.layout.xaxis.range == picture.x_range
    assert figure.layout.yaxis.range == picture.y_range
    assert trace(figure, "searched").y == (84.0, 12.0)
    assert trace(figure, "rejected: over budget").x == (1.21, 1.48)
    assert trace(figure, "rejected: over budget").yaxis == "y2"
    assert trace(figure, "front, ± 1 standard error").error_y.array == (0.7, 0.7, 0.7)
    named = [t.name for t in figure.data if t.showlegend is not False]
    assert sorted(named) == sorted(
        ["searched", "start-up", "baseline", "rejected: over budget", "failed", "front, ± 1 standard error"]
    )
    words = " ".join(annotation.text for annotation in figure.layout.annotations)
    assert "budget<br>1.2 GFLOPs" in words
    assert "plain: 87.0 %<br>1.5467 GFLOPs →" in words
    assert "1 without a score, 1 scored" in figure.layout.title.subtitle.text


def test_groups_are_told_apart_by_shape_and_by_filling() -> None:
    marks = {}
    for t in front_figure(RECORDS, title="t", axis=FREE).data:
        if t.name and t.marker.symbol:
            marks[t.name, t.showlegend] = t.marker.symbol, t.marker.size
    assert len(set(marks.values())) == len(marks)
    assert marks["searched", True][0] == "circle"
    assert marks["searched", False][0] == "circle-open"


def test_hovering_tells_everything_about_a_trial() -> None:
    figure = front_figure(RECORDS, title="t", axis=AXIS)
    assert trace(figure, "searched").hovertext[0].split("<br>") == [
        "<b>trial 3</b>, searched",
        "1.1800 GFLOPs",
        "top-1 84.0 ± 0.7 %",
        "loss 0.8000",
        "IB weight 0.125",
        "I(X̃;X) 3e-05, I(X̃;Y) 0.333, IB bound -0.75 nats",
        "ran with weights version 17",
        "keep ratios, 1 = plain:",
        "  stages.2.1.transformer: 1 .5",
        "  stages.3.1.transformer: .7",
    ]
    assert "over budget: no score" in trace(figure, "rejected: over budget").hovertext[0]
    opened = next(t for t in figure.data if t.name == "searched" and t.showlegend is False)
    assert "top-1 77.0 ± 1.1 % when it ran" in opened.hovertext[0]
    slow = front_figure([trial(0, 1.1, 80.0, latency_ms=12.345)], title="t", axis=FREE)
    assert "1.1000 GFLOPs, 12.35 ms predicted" in slow.data[0].hovertext[0]


def test_the_front_is_written_as_a_page_under_its_title(tmp_path: Path) -> None:
    written = write_front(RECORDS, tmp_path, title="a study", axis=AXIS, png=False)
    assert written.paths == (tmp_path / "front.html",)
    page = written.paths[0].read_text(encoding="utf-8")
    assert "<title>a study</title>" in page
    assert "top-1 84.0 \\u00b1 0.7 %" in page


def printed(records: list[TrialRecord], axis: CostAxis = FREE) -> list[str]:
    stream = io.StringIO()
    print_front(Console(file=stream, width=80), records, axis=axis)
    return stream.getvalue().splitlines()


def test_the_table_lists_the_front_and_then_what_to_compare_it_with() -> None:
    lines = printed([*RECORDS, trial(9, 1.0, 60.0, 61.0, kind="baseline", label="uniform 0.3")], AXIS)
    assert "budget 1.2 GFLOPs" in lines[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        ["3", "1.1800", "84.0 ± 0.7", "", "1 .5 | .7"],
        ["1", "1.1500", "81.0 ± 0.7", "", ".5 .5 | .5"],
        ["2", "1.1000", "80.0 ± 0.7", "", "1 .5 | .7"],
        ["9", "1.0000", "61.0 ± 0.7", "", "1 .5 | .7"],
        ["0", "1.5467", "87.0 ± 0.7", "", "plain (over budget)"],
        ["1", "1.1500", "81.0 ± 0.7", "", "uniform 0.5"],
    ]
    assert "\x1b" not in "".join(lines)


def test_the_table_fits_80_columns_with_many_layers() -> None:
    ratios = {f"blocks.{i}": 0.875 for i in range(24)}
    lines = printed([trial(12345, 117.1234, 80.0, 81.0, feasible=True, expected_top1=80.64, keep_ratios=ratios)])
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(cell in text for cell in ("12345", "117.1234", "81.0 ± 0.7", "80.6", "expected: the mean of top-1"))
    assert text.count(".875") == 24


def test_beside_latencies_keep_ratios_have_a_table_of_their_own() -> None:
    """Twelve layers with forms, and milliseconds in the thousands: the widest that a search leaves."""
    ratios = {f"blocks.{i}": 0.85 for i in range(12)}
    forms = dict.fromkeys(ratios, "matched")
    wide = timed(10734, 199.51, 80.0, 2440.52, feasible=True, keep_ratios=ratios, forms=forms)
    plain = timed(0, 198.34, 81.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(ratios, 1.0))
    lines = printed([wide, plain], MS)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    numbers, nets = [row for row in rows if len(row) == 6], [row for row in rows if len(row) == 2]
    assert [row[2:4] for row in numbers] == [["199.51", "2440.52 ± 0.40!"], ["198.34", ""]]
    assert nets == [["10734", " ".join([".85m"] * 12)], ["0", "plain (over budget)"]]


def test_the_table_says_when_scores_are_not_final() -> None:
    lines = printed([trial(1, 1.15, 79.0, kind="baseline", label="uniform 0.5"), OPEN])
    assert "No front yet" in lines[0]
    assert any("79.0 ± 1.1*" in line for line in lines)
    assert "* scored when the trial ran" in lines[-1]
    assert "*" not in "".join(printed(RECORDS))


def test_drawing_needs_neither_torch_nor_optuna() -> None:
    heavy = {"torch", "optuna", "timm", "kaleido"}
    code = f"import sys, ltmsearch.reporting.pareto_plot; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_letters_of_forms_are_explained_where_they_stand() -> None:
    plain = "keep ratio of each layer, 1 = plain, | between stages"
    assert plain in " ".join(printed([UNIFORM]))
    schedule = MergeSchedule(keep_ratios=dict.fromkeys(LAYERS, 0.5), forms={LAYERS[0]: "hard", LAYERS[1]: "matched"})
    merged = dataclasses.replace(UNIFORM, kind="searched", label="", schedule=schedule)
    lines = " ".join(printed([merged]))
    assert ".5h" in lines
    assert ".5m" in lines
    assert "h hard, m matched" in lines
    assert plain not in lines


# -- a front of latencies ---------------------------------------------------------------------------------------------

MS = CostAxis(name="latency_ms", title="ms per batch of 1 at 224 px, predicted (cpu, torch, fp32)", budget=20.0)


def timed(number: int, ms: float, top1: float, measured: float | None = None, **fields: Any) -> TrialRecord:
    """A re-scored trial of a latency study; the faster, the more multiply-adds."""
    error = None if measured is None else 0.4
    defaults = {"latency_ms": ms, "latency_measured_ms": measured, "latency_measured_se_ms": error}
    return trial(number, 2.0 - ms / 100, top1, top1, **{"feasible": ms <= 20.0, **defaults, **fields})


SLOW_PLAIN = timed(0, 40.0, 90.0, 41.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0))
LATENCIES = [
    timed(1, 19.0, 80.0, 21.5),
    timed(2, 15.0, 70.0, 14.0),
    timed(3, 12.0, 60.0),
    timed(4, 18.0, 65.0),
    SLOW_PLAIN,
    trial(5, 0.5, None, latency_ms=20.5, feasible=False),
]


def test_a_figure_of_latencies_stands_on_their_axis() -> None:
    figure = front_figure(LATENCIES, title="t", axis=MS)
    assert figure.layout.xaxis.title.text == MS.title
    assert trace(figure, "searched").x == (19.0, 15.0, 12.0, 18.0)
    assert trace(figure, "rejected: over budget").x == (20.5,)
    assert trace(figure, "front, ± 1 standard error").x == (12.0, 15.0, 19.0)
    picture = front_picture(LATENCIES, MS)
    assert [record.trial for record in picture.front] == [3, 2, 1]
    assert picture.step == ((12.0, 60), (15.0, 60), (15.0, 70), (19.0, 70), (19.0, 80), (20.0, 80))
    (line,) = [shape for shape in figure.layout.shapes if shape.line.dash == "dash"]
    assert (line.x0, line.x1) == (20.0, 20.0)
    words = " ".join(annotation.text for annotation in figure.layout.annotations)
    assert "budget<br>20 ms" in words
    assert "plain: 90.0 %<br>40.00 ms →" in words


def test_measured_latencies_are_bars_beside_the_front() -> None:
    figure = front_figure(LATENCIES, title="t", axis=MS)
    kept, broken = trace(figure, "measured"), trace(figure, "measured: over budget")
    assert (kept.x, kept.y, kept.error_x.array) == ((14.0,), (70.0,), (0.4,))
    assert (broken.x, broken.y) == ((21.5,), (80.0,)), "drawn, not hidden"
    assert kept.marker.color != broken.marker.color
    lines = [(t.x, t.y) for t in figure.data if t.mode == "lines" and len(t.x) == 2]
    assert lines == [((15.0, 14.0), (70.0, 70.0)), ((19.0, 21.5), (80.0, 80.0))], "from predicted to measured"
    low, high = figure.layout.xaxis.range
    assert low < 12.0 < 21.5 < high
    slower = [timed(1, 19.0, 80.0, 35.0), *LATENCIES[1:]]
    assert front_picture(slower, MS).x_range[1] > 35.0, "in view however slow it was"
    assert trace(figure, "searched").hovertext[0].split("<br>")[1:3] == [
        "1.8100 GFLOPs, 19.00 ms predicted",
        "21.50 ± 0.40 ms measured",
    ]


def test_what_is_not_on_the_front_or_not_of_latency_has_no_bar() -> None:
    names = {t.name for t in front_figure(LATENCIES, title="t", axis=AXIS).data}
    assert not {"measured", "measured: over budget"} & names
    untimed = [dataclasses.replace(r, latency_measured_ms=None) for r in LATENCIES]
    assert not {"measured", "measured: over budget"} & {t.name for t in front_figure(untimed, title="t", axis=MS).data}


def test_a_latency_table_has_both_latencies_and_marks_what_breaks_the_budget() -> None:
    lines = printed(LATENCIES, MS)
    assert "Front: 3 of 6 trials, budget 20 ms" in lines[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[:5] for row in rows if len(row) > 2] == [
        ["1", "1.8100", "19.00", "21.50 ± 0.40!", "80.0 ± 0.7"],
        ["2", "1.8500", "15.00", "14.00 ± 0.40", "70.0 ± 0.7"],
        ["3", "1.8800", "12.00", "", "60.0 ± 0.7"],
        ["0", "1.6000", "40.00", "41.00 ± 0.40", "90.0 ± 0.7"],
    ]
    assert "! predicted within the budget, but measured over it" in lines[-1]
    kept = printed(LATENCIES[1:4], MS)
    assert "!" not in "".join(kept)
    assert not breaks_budget(SLOW_PLAIN, MS), "nobody predicted it to keep the budget"
    assert not breaks_budget(LATENCIES[0], AXIS)
    assert not breaks_budget(LATENCIES[0], dataclasses.replace(MS, budget=None))


def test_a_latency_table_fits_80_columns_with_long_numbers_and_many_layers() -> None:
    ratios = {f"blocks.{i}": 0.875 for i in range(24)}
    fields = {"feasible": True, "expected_top1": 80.64, "keep_ratios": ratios, "latency_measured_se_ms": 12.34}
    record = trial(12345, 117.1234, 80.0, 81.0, latency_ms=1234.56, latency_measured_ms=1345.67, **fields)
    lines = printed([record], dataclasses.replace(MS, budget=1300.0))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(cell in text for cell in ("12345", "117.1234", "1234.56", "1345.67 ± 12.34!", "81.0 ± 0.7", "80.6"))
    assert text.count(".875") == 24


def test_how_far_predictions_were_off_is_the_mean_over_what_was_timed() -> None:
    front = LATENCIES[:3]
    error = (2.5 / 21.5 + 1.0 / 14.0) / 2
    assert prediction_lines(front, MS) == [
        f"front timed end to end: predictions were off by {error:.1%} on average",
        "measured over the budget of 20 ms, and marked: trial 1",
    ]
    assert len(prediction_lines(front[1:], MS)) == 1
    assert prediction_lines(front[2:], MS) == []
    assert prediction_lines([], MS) == []
