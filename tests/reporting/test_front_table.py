"""The front's table in the terminal: its rows, captions and width."""

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console
from support.records import (
    BEST,
    LATENCIES,
    LAYERS,
    OPEN,
    PLAIN,
    RECORDS,
    UNIFORM,
    make_answers,
    make_latency_trial,
    make_trial,
    reported,
)

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.front_table import make_front_table, prediction_lines
from ltmsearch.reporting.numbers import breaks_budget, duration
from ltmsearch.reporting.terminal import print_front
from ltmsearch.reporting.verdict import Verdict, judge
from ltmsearch.search.records import TrialRecord

AXIS, FREE = CostAxis(budget=1.2), CostAxis()
MS = CostAxis(name="latency_ms", budget=20.0)
BEFORE = "top-1: on images that neither search nor choice saw, before training by recipe"
PLAIN_LINE = "− plain: top-1 less the plain network's, points; agreement: same class as the plain network's"


def printed(
    records: list[TrialRecord], axis: CostAxis = FREE, verdict: Verdict | None = None, width: int = 80
) -> list[str]:
    stream = io.StringIO()
    print_front(Console(file=stream, width=width), records, axis=axis, verdict=verdict)
    return stream.getvalue().splitlines()


def rows(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def test_front_and_baselines_are_listed() -> None:
    lines = printed([*RECORDS, make_trial(9, 1.0, 60.0, 61.0, kind="baseline", label="uniform 0.3")], AXIS)
    assert "Front: 4 of 7 trials, budget 1.2 GFLOPs" in lines[0]
    assert rows(lines) == [
        ["3", "1.1800", "84.0 ± 0.7", "−3.0 ± 0.4", "1 .5h | .7"],
        ["1", "1.1500", "81.0 ± 0.7", "−6.0 ± 0.4", ".5 .5 | .5"],
        ["2", "1.1000", "80.0 ± 0.7", "−7.0 ± 0.4", "1 .5 | .7"],
        ["9", "1.0000", "61.0 ± 0.7", "−26.0 ± 0.4", "1 .5 | .7"],
        ["0", "1.5467", "87.0 ± 0.7", "0", "plain (over budget)"],
        ["1", "1.1500", "81.0 ± 0.7", "−6.0 ± 0.4", "uniform 0.5"],
    ]
    assert "Keep ratios, layer by layer in each stage: 1 = no merging (h hard form)" in lines
    assert "\x1b" not in "".join(lines)


def test_captions_say_what_the_numbers_are() -> None:
    captions = make_front_table(RECORDS, AXIS).captions
    assert captions[1:] == (
        BEFORE,
        PLAIN_LINE,
        "loss: cross-entropy, nats, final weights, validation images: chooses the front",
        "±: one standard error",
    )
    by_kl = make_front_table(RECORDS, dataclasses.replace(AXIS, measure="kl")).captions
    assert any(line.startswith("KL: divergence from the plain network, nats") for line in by_kl)


def test_the_verdict_adds_its_marks_and_the_number_of_images() -> None:
    answers = make_answers(RECORDS, 400, apart=0.005)
    records = reported(RECORDS, answers)
    verdict = judge(records, answers, AXIS, tolerance=0.5)
    assert (verdict.recommended, verdict.not_better) == (3, {1}), "3 points are told apart, and 1 is not"
    lines = printed(records, AXIS, verdict)
    assert [row[0] for row in rows(lines) if len(row) > 3] == ["→ 3", "1", "2", "0", "1"]
    marked = {row[0]: row[2] for row in rows(lines) if len(row) > 3}
    assert marked["1"] == "81.0 ± 2.0 ≈"
    assert "≈" not in marked["→ 3"] + marked["2"] + marked["0"]
    assert lines[-1] == "→ recommended; ≈ not significantly better than a cheaper point (95 %)"
    assert "on 400 images that neither search nor choice saw" in " ".join(lines)
    assert max(map(len, lines)) <= 80
    unmarked = " ".join(printed(records, AXIS))
    assert "→" not in unmarked
    assert "≈" not in unmarked
    front = make_front_table(records, AXIS, verdict).front
    assert [row.trial for row in front] == [3, 1, 2], "numbers without marks"


def test_measure_and_ib_weight_are_shown_where_they_fit() -> None:
    by_kl = dataclasses.replace(AXIS, measure="kl")
    wide = printed(RECORDS, by_kl, width=120)
    assert rows(wide)[0] == ["3", "1.1800", "84.0 ± 0.7", "−3.0 ± 0.4", "0.4000", "0.125", "1 .5h | .7"]
    assert any("KL" in line and "IB weight" in line for line in wide[:4])
    assert not any("IB weight" in line for line in printed(RECORDS, by_kl))


def test_letters_tell_forms_apart_and_one_form_needs_none() -> None:
    def of(number: int, form: str) -> TrialRecord:
        return make_trial(
            number, 1.0 + number / 100, 80.0 + number, 80.0 + number, forms=dict.fromkeys(LAYERS[1:], form)
        )

    one = [of(0, "matched"), of(1, "matched")]
    lines = printed(one)
    assert {row[-1] for row in rows(lines)} == {"1 .5 | .7"}
    assert any(line.endswith("1 = no merging (matched form)") for line in lines)
    lines = printed([*one, of(2, "hard")])
    assert [row[-1] for row in rows(lines)] == ["1 .5h | .7h", "1 .5m | .7m", "1 .5m | .7m"]
    assert "1 = no merging (h hard, m matched form)" in " ".join(" ".join(lines).split())


def test_a_range_of_budgets_is_in_the_title() -> None:
    assert "budgets 1.1 to 1.2 GFLOPs" in printed(RECORDS, CostAxis(budget=1.2, lowest=1.1))[0]


def test_columns_without_values_are_left_out() -> None:
    assert make_front_table(RECORDS, AXIS).columns == (
        "trial", "GFLOPs", "top-1 %", "− plain", "loss", "IB weight",
    )  # fmt: skip
    assert make_front_table([], AXIS).columns == ()


def test_smaller_images_have_a_column() -> None:
    small = dataclasses.replace(BEST, schedule=dataclasses.replace(BEST.schedule, img_size=192))
    lines = printed([PLAIN, UNIFORM, small], AXIS)
    assert [row[1] for row in rows(lines) if len(row) > 3] == ["192", "", "", ""]
    assert "px: image side, where it is not the network's own" in lines


def test_agreement_has_a_column_if_it_is_known() -> None:
    known = dataclasses.replace(BEST, agreement=93.24, agreement_se=1.26)
    lines = printed([PLAIN, UNIFORM, known], AXIS)
    assert [row[4] for row in rows(lines) if len(row) > 3] == ["93.2 ± 1.3", "", "", ""]
    assert not any("agreement %" in line for line in printed(RECORDS, AXIS))


def test_many_layers_fit_80_columns() -> None:
    ratios = {f"blocks.{i}": 0.875 for i in range(24)}
    fields = {"feasible": True, "keep_ratios": ratios, "agreement": 100.0, "agreement_se": 0.0}
    timed = {"latency_ms": 1234.56, "latency_measured_ms": 1345.67, "latency_measured_se_ms": 12.34}
    gflops = printed([make_trial(12345, 117.1234, 80.0, 81.0, **fields)])
    ms = printed([make_trial(12345, 117.1234, 80.0, 81.0, **fields, **timed)], dataclasses.replace(MS, budget=1300.0))
    for lines, cells in ((gflops, ()), (ms, ("1234.56", "1345.67 ± 12.34!"))):
        assert max(map(len, lines)) <= 80
        text = "\n".join(lines)
        assert all(
            cell in text for cell in ("12345", "117.1234", "81.0 ± 0.7", "−6.0 ± 0.4", "100.0 ± 0.0", BEFORE, *cells)
        )
        assert text.count(".875") == 24


def test_keep_ratios_beside_latencies_have_their_own_table() -> None:
    ratios = {f"blocks.{i}": 0.85 for i in range(12)}
    forms = dict.fromkeys(ratios, "matched")
    wide = make_latency_trial(10734, 199.51, 80.0, 2440.52, feasible=True, keep_ratios=ratios, forms=forms)
    plain = make_latency_trial(0, 198.34, 81.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(ratios, 1.0))
    lines = printed([wide, plain], MS)
    assert max(map(len, lines)) <= 80
    numbers, ratio_rows = ([row for row in rows(lines) if len(row) == size] for size in (6, 2))
    assert [row[2:4] for row in numbers] == [["199.51", "2440.52 ± 0.40!"], ["198.34", ""]]
    assert ratio_rows == [["10734", " ".join([".85"] * 12)], ["0", "plain (over budget)"]]


def test_numbers_that_do_not_fit_move_to_the_table_of_keep_ratios() -> None:
    fields: dict[str, Any] = {"agreement": 93.24, "agreement_se": 1.26}
    lines = printed([make_latency_trial(7, 19.0, 80.0, 21.5, **fields)], MS)
    assert max(map(len, lines)) <= 80
    assert rows(lines) == [
        ["7", "1.8100", "19.00", "21.50 ± 0.40!", "80.0 ± 0.7", "−7.0 ± 0.4"],
        ["7", "93.2 ± 1.3", "1 .5 | .7"],
    ]


def test_scores_that_are_not_final_are_marked() -> None:
    lines = printed([make_trial(1, 1.15, 79.0, kind="baseline", label="uniform 0.5"), OPEN])
    assert "No front yet" in lines[0]
    assert any("79.0 ± 1.1*" in line for line in lines)
    assert lines[-1] == "* top-1 on search images when the trial ran"
    assert BEFORE not in lines
    assert "*" not in "".join(printed(RECORDS))


def test_letters_of_forms_are_explained() -> None:
    assert any(line.endswith("1 = no merging") for line in printed([UNIFORM]))
    schedule = dataclasses.replace(BEST.schedule, forms={LAYERS[1]: "hard", LAYERS[2]: "matched"})
    lines = " ".join(printed([dataclasses.replace(BEST, schedule=schedule)]))
    assert ".5h | .7m" in lines
    assert "h hard, m matched" in lines
    schedule = dataclasses.replace(BEST.schedule, forms={LAYERS[2]: "gradient"})
    lines = " ".join(printed([dataclasses.replace(BEST, schedule=schedule)]))
    assert ".5 | .7g" in lines
    assert "g gradient form" in lines


def test_latencies_over_the_budget_are_marked() -> None:
    lines = printed(LATENCIES, MS)
    assert "Front: 3 of 6 trials, budget 20 ms" in lines[0]
    assert [row[:6] for row in rows(lines) if len(row) > 2] == [
        ["1", "1.8100", "19.00", "21.50 ± 0.40!", "80.0 ± 0.7", "−7.0 ± 0.4"],
        ["2", "1.8500", "15.00", "14.00 ± 0.40", "70.0 ± 0.7", "−17.0 ± 0.4"],
        ["3", "1.8800", "12.00", "", "60.0 ± 0.7", "−27.0 ± 0.4"],
        ["0", "1.6000", "40.00", "41.00 ± 0.40", "87.0 ± 0.7", "0"],
    ]
    assert lines[-1] == "! predicted within the budget, but measured over it"
    assert "!" not in "".join(printed(LATENCIES[1:4], MS))
    assert not breaks_budget(LATENCIES[4], MS), "it was not predicted to be within the budget"
    assert not breaks_budget(LATENCIES[0], AXIS)
    assert not breaks_budget(LATENCIES[0], dataclasses.replace(MS, budget=None))


def test_prediction_error_is_the_mean_over_measured_trials() -> None:
    front = LATENCIES[:3]
    error = (2.5 / 21.5 + 1.0 / 14.0) / 2
    assert prediction_lines(front, MS) == [
        f"front measured end to end: mean error of the latency predictions {error:.1%}",
        "measured over the budget of 20 ms: trial 1",
    ]
    assert len(prediction_lines(front[1:], MS)) == 1
    assert prediction_lines(front[2:], MS) == prediction_lines([], MS) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.96, "1 min 0 s"), (59.9, "59.9 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
