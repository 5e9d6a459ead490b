import dataclasses
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.records import BEST, LAYERS, OPEN, OVER, RECORDS, START_UP, make_answers, make_run, make_trial, reported

from ltmsearch.config.objective import CostAxis
from ltmsearch.config.settings import StudySettings
from ltmsearch.reporting.findings import find, findings_of, findings_record, name_layers, sentences, write_findings
from ltmsearch.reporting.layer_plot import layers_figure, least_width
from ltmsearch.reporting.terminal import print_findings
from ltmsearch.reporting.verdict import verdict_sentences
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.records import TrialRecord, form_letters

MOBILEVIT = tuple(
    f"stages.{stage}.1.transformer.{i}" for stage, depth in ((2, 2), (3, 4), (4, 3)) for i in range(depth)
)
VIT = tuple(f"blocks.{i}" for i in range(12))
SWIN_BASE = tuple(f"layers.{stage}.blocks.{i}" for stage, depth in enumerate((2, 2, 18, 2)) for i in range(depth))
AXIS = CostAxis()


def point(number: int, gflops: float, top1: float, ratios: Mapping[str, float], **fields: Any) -> TrialRecord:
    """A finalist; the higher its top-1, the lower its loss."""
    return make_trial(number, gflops, top1, top1, feasible=True, keep_ratios=ratios, **fields)


def random_front(layers: Sequence[str], points: int) -> list[TrialRecord]:
    rng = random.Random(0)
    return [
        point(n, 1.0 + n / 10, 60.0 + n, {layer: rng.choice([1.0, 0.5, 0.7]) for layer in layers})
        for n in range(points)
    ]


def test_always_never_and_changing_partition_the_layers() -> None:
    rng = random.Random(0)
    records = [
        point(n, 1.0 + n / 10, 60.0 + n, {layer: rng.choice([1.0, 0.5, 0.7]) for layer in VIT} | {"blocks.3": 0.5})
        for n in range(3)
    ]
    findings = find(records, AXIS)
    assert [record.trial for record in findings.front] == [0, 1, 2], "cheapest first"
    merging = {layer: sum(record.schedule.keep_ratios[layer] != 1 for record in records) for layer in VIT}
    assert findings.always == tuple(layer for layer in VIT if merging[layer] == 3)
    assert findings.never == tuple(layer for layer in VIT if merging[layer] == 0)
    assert findings.changing == tuple(layer for layer in VIT if merging[layer] in (1, 2))
    assert "blocks.3" in findings.always


def test_sentence_on_three_points() -> None:
    ratios = dict.fromkeys(MOBILEVIT, 1.0) | dict.fromkeys(MOBILEVIT[:2], 0.5)
    records = [
        point(0, 1.0, 60.0, ratios | {MOBILEVIT[0]: 0.25, MOBILEVIT[3]: 0.5}),
        point(1, 1.1, 62.0, ratios),
        point(2, 1.2, 64.0, ratios),
    ]
    assert sentences(find(records, AXIS))[0] == (
        "All 3 points of the front merge stages.2.1.transformer.* (keep ratio 0.25 to 0.5); "
        "stages.3.1.transformer.0, .2, .3 and stages.4.1.transformer.* never merge; "
        "stages.3.1.transformer.1 merges in some."
    )


def test_small_fronts_are_described_and_drawn(tmp_path: Path) -> None:
    merged = point(0, 1.0, 60.0, dict.fromkeys(MOBILEVIT, 0.5))
    plain = point(1, 1.5, 60.0, dict.fromkeys(MOBILEVIT, 1.0))
    early = make_trial(0, 1.0, 60.0, keep_ratios=dict.fromkeys(MOBILEVIT, 0.5))
    told = {"one": [merged], "plain": [plain], "open": [early], "none": []}
    first = {name: sentences(find(records, AXIS))[0] for name, records in told.items()}
    assert first["one"] == "The only point of the front merges all 9 layers (keep ratio 0.5)."
    assert first["plain"] == "The only point of the front is the plain network."
    assert first["open"].startswith("There is no front yet")
    assert sentences(find([], AXIS)) == [first["open"]]
    for name, records in told.items():
        layers_figure(find(records, AXIS), title=name)
        (tmp_path / name).mkdir()
        write_findings(find(records, AXIS), tmp_path / name / "findings.json")


def test_the_verdict_comes_first_and_is_none_without_answers() -> None:
    answers = make_answers(RECORDS)
    records = reported(RECORDS, answers)
    findings = find(records, AXIS, answers)
    assert findings.verdict is not None
    said = verdict_sentences(findings.verdict, AXIS)
    assert len(said) == 2
    assert sentences(findings)[:2] == said
    assert sentences(findings)[2].startswith("All 3 points of the front merge")
    assert find(records, AXIS).verdict is None
    assert sentences(find(records, AXIS)) == sentences(findings)[2:]
    accepting = find(records, AXIS, answers, 90.0)
    assert accepting.verdict is not None
    assert accepting.verdict.tolerance == 90.0
    assert accepting.verdict.recommended == START_UP.trial, "the cheapest loses less than 90 points"


def test_findings_of_a_run_use_its_answers_and_tolerance(tmp_path: Path) -> None:
    answers = make_answers(RECORDS)
    records = reported(RECORDS, answers)
    given = {"backbone": "mobilevit_s", "budget_gflops": 1.2, "study": "s", "tolerance": 90.0, "objective": "kl"}
    settings = StudySettings.make("test", **given).resolved("cpu")
    verdict = findings_of(make_run(tmp_path / "run", settings, records, answers)).verdict
    assert verdict is not None
    assert (verdict.tolerance, verdict.images) == (90.0, 1000)
    interrupted = findings_of(make_run(tmp_path / "early", settings, [OPEN, OVER]))
    assert (interrupted.verdict, interrupted.front, interrupted.axis.measure) == (None, (), "kl")


@pytest.mark.parametrize(
    ("among", "places", "words"),
    [
        (VIT, [3], "blocks.3"),
        (VIT, [0, 1], "blocks.0 and .1"),
        (VIT, [0, 3, 4, 5, 6, 7, 9], "blocks.0, .3 to .7 and .9"),
        (VIT, [0, 2, 4, 6, 7, 8, 9, 11], "blocks.0, .2, .4 and 5 more"),
        (VIT, range(12), "all 12 layers"),
        (SWIN_BASE, range(2, 22), "layers.1.blocks.* and layers.2.blocks.*"),
        (("stages.2.blocks.0", "stages.3.blocks.0"), [0], "stages.2.blocks.0"),
    ],
)
def test_layers_are_named_in_few_words(among: Sequence[str], places: Sequence[int], words: str) -> None:
    assert name_layers([among[i] for i in places], among) == words


def test_the_text_stays_short_for_24_layers() -> None:
    uniform = dict.fromkeys(SWIN_BASE, 0.5)
    records = [*random_front(SWIN_BASE, 6), point(9, 1.4, 50.0, uniform, kind="baseline", label="uniform 0.5")]
    answers = make_answers(records)
    stream = io.StringIO()
    print_findings(Console(file=stream, width=200), find(reported(records, answers), AXIS, answers))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 12


def test_a_run_ends_with_what_to_do() -> None:
    answers = make_answers(RECORDS)
    findings = find(reported(RECORDS, answers), AXIS, answers)
    stream = io.StringIO()
    print_findings(Console(file=stream, width=80), findings)
    *_, layers, verdict = stream.getvalue().strip().split("\n\n")
    assert " ".join(layers.split()).startswith("All 3 points of the front merge")
    assert " ".join(verdict.split()).startswith("Take trial 3 ")
    stream = io.StringIO()
    print_findings(Console(file=stream, width=80), find([], AXIS))
    assert stream.getvalue().strip() == "There is no front yet: no trial within the budget was rescored."


def test_file_contains_the_findings(tmp_path: Path) -> None:
    answers = make_answers(RECORDS)
    findings = find(reported(RECORDS, answers), AXIS, answers)
    held = json.loads(write_findings(findings, tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert held == json.loads(json.dumps(findings_record(findings)))
    assert held["sentences"] == sentences(findings)
    assert findings.verdict is not None
    assert held["verdict"] == findings.verdict.as_json()
    assert held["verdict"]["recommendation"]["trial"] == 3
    assert [each["trial"] for each in held["front"]] == [2, 1, 3], "the cheapest first"
    best = held["front"][-1]
    assert (best["rescored_loss"], best["report_top1"], best["difference"]) == (BEST.rescored_loss, 84.0, -3.0)
    assert best["forms"] == {LAYERS[1]: "hard"}
    early = write_findings(find([OPEN, OVER], AXIS), tmp_path / "early.json").read_text(encoding="utf-8")
    assert json.loads(early)["verdict"] is None


def test_plot_has_every_layer_and_point() -> None:
    front = [
        point(n, 1.0 + n, 60.0 + n, record.schedule.keep_ratios, forms={MOBILEVIT[4]: "hard"})
        for n, record in enumerate(random_front(MOBILEVIT, 3))
    ]
    findings = find(front, AXIS)
    figure = layers_figure(findings, title="t")
    (table,) = figure.data
    assert table.y == MOBILEVIT
    assert figure.layout.yaxis.categoryarray == MOBILEVIT
    assert figure.layout.yaxis.range == (8.5, -0.5), "the first layer on top"
    assert table.x[0] == "trial 0<br>1.0000 GFLOPs<br>−27.0 points"
    assert len(table.x) == 3
    for row, layer in enumerate(MOBILEVIT):
        for column, record in enumerate(findings.front):
            ratio = record.schedule.keep_ratios[layer]
            assert table.z[row][column] == 1 - ratio
            assert table.text[row][column] == ("" if ratio == 1 else record.short_ratio(layer, form_letters(front)))
    assert {"h" in words for words in table.text[4]} == {r.schedule.keep_ratios[MOBILEVIT[4]] < 1 for r in front}
    assert sentences(findings)[0][:40] in figure.layout.title.subtitle.text


def test_plot_marks_the_recommended_point() -> None:
    answers = make_answers(RECORDS)
    findings = find(reported(RECORDS, answers), AXIS, answers)
    (table,) = layers_figure(findings).data
    assert [words.partition("<br>")[0] for words in table.x] == ["trial 2", "trial 1", "→ trial 3"]
    (narrow,) = layers_figure(findings, place="dashboard").select_xaxes()
    assert [words.partition("<br>")[0] for words in narrow.ticktext] == ["2", "1", "→ 3"]


def counted(record: TrialRecord, tokens: int = 200) -> TrialRecord:
    """The same trial by numbers of tokens to remove, of layers that have `tokens` each."""
    ratios = record.schedule.keep_ratios
    removed = {layer: 1.0 if ratio == 1 else -round((1 - ratio) * tokens) for layer, ratio in ratios.items()}
    shares = {layer: ratio for layer, ratio in ratios.items() if ratio < 1}
    schedule = MergeSchedule(keep_ratios=removed, forms=record.schedule.forms)
    return dataclasses.replace(record, schedule=schedule, kept_shares=shares)


def test_tokens_to_remove_are_drawn_as_their_shares() -> None:
    records = random_front(MOBILEVIT, 5)
    other = [counted(record) for record in records]
    assert {ratio for r in other for ratio in r.schedule.keep_ratios.values()} == {1.0, -60, -100}
    assert sentences(find(other, AXIS)) == sentences(find(records, AXIS))
    one, same = (layers_figure(find(each, AXIS)).data[0] for each in (records, other))
    assert one.z == same.z
    assert {text for row in same.text for text in row} == {"", "-60", "-100"}


def test_many_points_have_units_once() -> None:
    ratios = dict.fromkeys(SWIN_BASE, 0.5)
    records = [point(n, 3.0, 60.0 + n, ratios, latency_ms=10.0 + n) for n in range(8)]
    findings = find(records, CostAxis(name="latency_ms"))
    figure = layers_figure(findings, title="t")
    assert figure.data[0].x == tuple(f"{n}<br>{10 + n}.00<br>−{27 - n}.0" for n in range(8))
    assert "trial, ms, top-1 less the plain network's in points" in figure.layout.xaxis.title.text
    assert least_width(findings) > 8 * 50


def test_points_without_a_difference_have_none_in_their_label() -> None:
    """A run that was interrupted between its final scores and its answers."""
    early = dataclasses.replace(BEST, report_top1=None, report_top1_se=None, difference=None, difference_se=None)
    (table,) = layers_figure(find([early], AXIS)).data
    assert table.x == ("trial 3<br>1.1800 GFLOPs",)
    assert json.dumps(findings_record(find([early], AXIS)))
