import dataclasses
import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.records import make_record

from ltmsearch.config.objective import CostAxis
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import Form
from ltmsearch.search.records import (
    FORM_LETTERS,
    FRONT_COLUMNS,
    BestScore,
    TrialRecord,
    front_table,
    plain_network,
    read_trials,
    select_front,
    select_references,
    trials_table,
    write_csv,
)

LAYERS = ("stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0")


def record(trial: int, **fields: Any) -> TrialRecord:
    """A searched, feasible, scored and re-scored trial, unless told otherwise."""
    defaults: dict[str, Any] = {
        "kind": "searched",
        "state": "scored",
        "feasible": True,
        "gflops": 1.1,
        "top1": 70.0,
        "top1_se": 1.1,
        "loss": 0.9,
        "kl": 0.3,
        "rescored_loss": 0.8,
        "rescored_kl": 0.2,
        "report_top1": 75.0,
        "report_top1_se": 0.7,
        "difference": -2.5,
        "difference_se": 0.4,
        "keep_ratios": dict(zip(LAYERS, (1.0, 0.5, 0.7), strict=True)),
    }
    return make_record(trial=trial, **(defaults | fields))


NOT_FINAL: dict[str, Any] = dict.fromkeys(
    ("rescored_loss", "rescored_kl", "report_top1", "report_top1_se", "difference", "difference_se")
)
UNSCORED: dict[str, Any] = {
    "feasible": False,
    "gflops": 1.3,
    **dict.fromkeys(("top1", "top1_se", "loss", "kl")),
    **NOT_FINAL,
}
LOSS, KL = CostAxis(measure="loss"), CostAxis(measure="kl")
MS = CostAxis(name="latency_ms")


def awkward_records() -> list[TrialRecord]:
    """Floats that short decimals would lose, gaps everywhere, and a label that a careless CSV would break."""
    draw = random.Random(0)
    return [
        record(0, kind="baseline", label='uniform "0.5",\nor so', gflops=1 / 3, loss=5e-324, ib_weight=0.1 + 0.2),
        record(1, kind="start-up", **UNSCORED | {"state": "over budget", "latency_ms": math.pi}),
        record(2, **UNSCORED | {"state": "failed", "feasible": True, "seconds": 1e-7}),
        record(
            1000,
            keep_ratios=dict(zip(LAYERS, (-8, 0.5, -100), strict=True)),
            kept_shares={LAYERS[0]: 188 / 196, LAYERS[2]: 1 / 3},
        ),
        record(3, top1_se=None, supernet_version=0, **NOT_FINAL),
        *(
            record(
                trial,
                gflops=draw.random(),
                top1=100 * draw.random(),
                latency_ms=draw.choice([None, 100 * draw.random()]),
                latency_measured_ms=draw.choice([None, 100 * draw.random()]),
                latency_measured_se_ms=draw.choice([None, draw.random()]),
                ib_weight=draw.choice([0.0, draw.random()]),
                mi_x=draw.random() / 1e4,
                mi_y=draw.random(),
                ibb=-draw.random(),
                kl=draw.choice([None, draw.random()]),
                rescored_loss=draw.random(),
                rescored_kl=draw.choice([None, draw.random()]),
                report_top1=100 * draw.random(),
                difference=draw.choice([None, draw.random() - 0.5]),
                agreement=draw.choice([None, 100 * draw.random()]),
                agreement_se=draw.choice([None, draw.random()]),
                supernet_version=trial,
                keep_ratios={layer: draw.random() for layer in LAYERS},
                forms={layer: draw.choice(["soft", "hard"]) for layer in LAYERS if draw.random() < 0.5},
                img_size=draw.choice([None, 160, 192]),
            )
            for trial in range(4, 40)
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"kind": "random"}, "kind"),
        ({"state": "pruned"}, "state"),
        ({"trial": -1}, "trial"),
        ({"gflops": math.nan}, "gflops"),
        ({"top1": 101.0}, "top1"),
        ({"rescored_loss": math.inf}, "rescored_loss"),
        ({"latency_measured_se_ms": -0.1}, "latency_measured_se_ms"),
        ({"rescored_kl": -1e-9}, "rescored_kl"),
        ({"difference_se": math.inf}, "difference_se"),
        ({"top1": None}, "top1 must be given if and only if"),
        ({"state": "failed"}, "top1 must be given if and only if"),
        *(
            (UNSCORED | {"state": "failed", name: 0.5}, f"{name} needs state 'scored'")
            for name in ("kl", "rescored_kl", "rescored_loss", "report_top1", "difference", "agreement")
        ),
        ({"agreement": 100.1}, "agreement"),
        ({"keep_ratios": {"a": -8}}, "kept_shares must have exactly the layers .* is negative, but a is in only one"),
        ({"kept_shares": {"a": 0.5}}, "kept_shares must have exactly the layers .* is negative, but a is in only one"),
        ({"keep_ratios": {"a": -8}, "kept_shares": {"a": 1.5}}, "kept_shares"),
    ],
)
def test_a_record_checks_itself(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        record(**{"trial": 0} | fields)


def test_kept_shares_are_keep_ratios_or_what_is_left() -> None:
    counted = record(1, keep_ratios={"a": -8, "b": 0.5, "c": 1}, forms={"a": "matched"}, kept_shares={"a": 0.75})
    assert [counted.kept_share(layer) for layer in "abc"] == [0.75, 0.5, 1.0]
    assert counted.by_stage(FORM_LETTERS) == [("", "-8m .5 1")]
    assert record(2, keep_ratios={"a": -2000}, kept_shares={"a": 0.5}).short_ratio("a", FORM_LETTERS) == "-2000"


def test_name_and_score() -> None:
    assert record(7).name == "trial 7"
    assert record(7, label="uniform 0.5").name == "uniform 0.5"
    assert record(0).score == BestScore(75.0, 0.7, True)
    assert record(0, **NOT_FINAL).score == BestScore(70.0, 1.1, False)
    assert record(0, **UNSCORED | {"state": "failed"}).score is None
    assert str(record(0).score) == "75.0 ± 0.7"
    assert str(BestScore(75.04, None, True)) == "75.0"


def test_measures_when_it_ran_and_at_the_end() -> None:
    one = record(0)
    assert [(one.told(measure), one.rescored(measure)) for measure in ("loss", "kl")] == [(0.9, 0.8), (0.3, 0.2)]  # type: ignore[arg-type]
    early = record(0, **NOT_FINAL)
    assert [(early.told(measure), early.rescored(measure)) for measure in ("loss", "kl")] == [(0.9, None), (0.3, None)]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="measure"):
        one.rescored("top1")  # type: ignore[arg-type]


def test_a_schedule_reads_by_stage() -> None:
    layers = ["stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0", "blocks.10"]
    forms = {layers[1]: "hard", layers[2]: "soft", layers[3]: "hard"}
    read = record(0, keep_ratios=dict(zip(layers, (1.0, 0.5, 0.07, 4 / 7), strict=True)), forms=forms)
    stages = read.by_stage(FORM_LETTERS)
    assert stages == [("stages.2.1.transformer", "1 .5h"), ("stages.3.1.transformer", ".07"), ("blocks", ".571h")]


def numbers(records: Iterable[TrialRecord]) -> list[int]:
    return [each.trial for each in records]


def test_the_front_is_feasible_rescored_and_non_dominated() -> None:
    records = [
        record(0, kind="baseline", label="plain", feasible=False, gflops=1.5, rescored_loss=0.1),
        record(1, gflops=1.10, rescored_loss=0.6),
        record(2, gflops=1.15, rescored_loss=0.7),  # beaten by 1
        record(3, gflops=1.00, loss=0.0, **NOT_FINAL),  # not re-scored
        record(5, gflops=1.19, rescored_loss=0.5),
        record(4, gflops=1.19, rescored_loss=0.5),  # the same as 5, and earlier
        record(6, gflops=1.19, rescored_loss=0.6),
        record(8, gflops=1.05, kind="baseline", label="uniform 0.5", rescored_loss=0.9),
        record(9, **UNSCORED | {"state": "over budget"}),
    ]
    expected = [4, 1, 8]
    assert numbers(select_front(records, LOSS)) == expected
    assert numbers(select_front(reversed(records), LOSS)) == expected
    assert select_front(select_front(records, LOSS), LOSS) == select_front(records, LOSS)
    assert select_front([], LOSS) == []


def test_the_front_goes_by_its_measure_and_not_by_what_is_reported() -> None:
    records = [
        record(1, gflops=1.2, rescored_loss=0.8, rescored_kl=0.1, report_top1=60.0, difference=-20.0),
        record(2, gflops=1.1, rescored_loss=0.7, rescored_kl=0.2, report_top1=90.0, difference=+5.0),
        record(3, gflops=1.0, rescored_loss=0.9, rescored_kl=0.2, report_top1=50.0, difference=-30.0),
    ]
    assert numbers(select_front(records, KL)) == [1, 3], "3 diverges no more than 2, and is cheaper"
    assert numbers(select_front(records, LOSS)) == [2, 3]
    unknown = [*records, record(4, gflops=0.5, rescored_kl=None)]
    assert numbers(select_front(unknown, KL)) == [1, 3], "without the measure a trial is not on the front"


def test_the_front_is_that_of_the_definition() -> None:
    draw = random.Random(1)
    records = [
        record(n, gflops=draw.randint(1, 9) / 10, tokens_sent=draw.randint(1, 9), rescored_kl=draw.randint(1, 9) / 10)
        for n in range(60)
    ]
    for axis in (KL, CostAxis(measure="kl", second=CostAxis(name="tokens_sent"))):
        points = {r.trial: (r.rescored_kl or 0.0, *r.costs(axis.costs)) for r in records}
        kept = [
            n
            for n, point in points.items()
            if not any(
                all(a <= b for a, b in zip(other, point, strict=True)) and (other != point or m < n)
                for m, other in points.items()
            )
        ]
        front = select_front(records, axis)
        assert sorted(numbers(front)) == kept
        assert front == sorted(front, key=lambda r: points[r.trial]), "the best first"


def test_the_front_of_a_latency_study_weighs_latency() -> None:
    records = [
        record(0, gflops=1.0, latency_ms=30.0, rescored_loss=0.5),
        record(1, gflops=1.5, latency_ms=20.0, rescored_loss=0.6),  # dearer by multiply-adds, but faster
        record(2, gflops=1.1, latency_ms=31.0, rescored_loss=0.7),
        record(3, gflops=0.9, latency_ms=32.0, rescored_loss=0.6),
        record(4, gflops=0.8, latency_ms=10.0, feasible=False, rescored_loss=0.1),
        record(5, gflops=0.8, latency_ms=15.0, latency_measured_ms=99.0, rescored_loss=0.9),
    ]
    assert numbers(select_front(records, MS)) == [0, 1, 5], "predicted, not measured"
    assert numbers(select_front(records, LOSS)) == [0, 3, 5]
    assert front_table(records, MS).trial.tolist() == [0, 1, 5]
    assert front_table(records, MS).latency_measured_ms.tolist()[2] == 99.0
    with pytest.raises(ValueError, match="`latency_ms` of trial 7 is unknown"):
        select_front([record(7)], MS)


def test_references_are_plain_and_the_best_baseline() -> None:
    plain = record(0, kind="baseline", feasible=False, keep_ratios=dict.fromkeys(LAYERS, 1.0))
    low, high = (
        record(i, kind="baseline", label="uniform", rescored_loss=loss, rescored_kl=1 - loss)
        for i, loss in ((1, 0.7), (2, 0.6))
    )
    early = record(3, kind="baseline", label="uniform", loss=0.1, **NOT_FINAL)
    worse = record(7, kind="baseline", label="uniform", loss=0.2, **NOT_FINAL)
    dear = record(4, kind="baseline", label="uniform", feasible=False, rescored_loss=0.1)
    unscored = record(5, kind="baseline", label="uniform", **UNSCORED | {"state": "over budget"})
    searched = record(6, rescored_loss=0.01)
    everything = [searched, unscored, dear, worse, early, low, high, plain]
    assert select_references(everything, CostAxis()) == [plain, high]
    assert select_references(everything, CostAxis(measure="kl")) == [plain, low]
    assert select_references([worse, early, dear, searched], CostAxis()) == [early], "as it ran, not scored again"
    tie = dataclasses.replace(high, trial=8)
    assert select_references([tie, high], CostAxis()) == [high], "the earlier of equal ones"
    assert select_references([unscored], CostAxis()) == []


def test_the_plain_network_is_the_baseline_that_merges_nothing() -> None:
    nothing = dict.fromkeys(LAYERS, 1.0)
    plain, searched = record(3, kind="baseline", keep_ratios=nothing), record(1, keep_ratios=nothing)
    broken = record(0, kind="baseline", keep_ratios=nothing, **UNSCORED | {"state": "failed"})
    small = record(4, kind="baseline", keep_ratios=nothing, img_size=160, label="plain at 160 px")
    assert plain_network([broken, searched, small, record(2, kind="baseline"), plain]) == plain
    assert plain_network([broken, searched, small]) is None
    assert select_references([small, plain], CostAxis()) == [plain, small], "on smaller images it is a rival"


def test_front_table_has_published_columns_and_final_scores(tmp_path: Path) -> None:
    forms: dict[str, Form] = {LAYERS[1]: "hard"}
    final = {"agreement": 93.75, "agreement_se": 1.25, "rescored_version": 4}
    frame = front_table(
        [record(3, gflops=1.1, ib_weight=0.1, supernet_version=2, forms=forms, **final), record(4, gflops=1.2)], LOSS
    )
    assert ", ".join(frame.columns) == (
        "trial, gflops, gflops_sd, gflops_quantile, latency_ms, latency_measured_ms, latency_measured_se_ms, "
        "tokens_sent, rescored_kl, rescored_loss, report_top1, report_top1_se, difference, difference_se, agreement, "
        "agreement_se, ib_weight, rescored_version, img_size, keep_ratios, forms"
    )
    assert len(frame) == 1  # trial 4 is dearer and no better
    row = frame.iloc[0]
    assert (row.trial, row.gflops, row.rescored_kl, row.rescored_loss) == (3, 1.1, 0.2, 0.8)
    assert (row.report_top1, row.report_top1_se, row.difference, row.difference_se) == (75.0, 0.7, -2.5, 0.4)
    assert (row.ib_weight, row.rescored_version) == (0.1, 4)
    assert (row.agreement, row.agreement_se) == (93.75, 1.25)
    assert json.loads(row.forms) == forms
    path = write_csv(front_table([record(3)], KL), tmp_path / "front.csv")
    ratios = (
        '"{""stages.2.1.transformer.0"": 1.0, ""stages.2.1.transformer.1"": 0.5, ""stages.3.1.transformer.0"": 0.7}"'
    )
    assert path.read_text().splitlines() == [
        ",".join(FRONT_COLUMNS),
        f"3,1.1,,,,,,,0.2,0.8,75.0,0.7,-2.5,0.4,,,,,,{ratios},{{}}",
    ]


def test_trials_come_back_exactly(tmp_path: Path) -> None:
    records = awkward_records()
    path = write_csv(trials_table(reversed(records)), tmp_path / "trials.csv")
    assert read_trials(path, "ltm") == sorted(records, key=lambda r: r.trial)
    again = write_csv(trials_table(read_trials(path, "ltm")), tmp_path / "again.csv")
    assert again.read_bytes() == path.read_bytes()
    assert read_trials(write_csv(trials_table([]), path), "ltm") == []


DAMAGE = {
    "foreign": (lambda text: "a,b\n1,2\n", "must have the columns"),
    "cut in a row": (lambda text: text[: text.rindex("0.8") + 1], "a row must have"),
    "cut in the schedule": (lambda text: text[: text.rindex("stages")], "complete CSV file"),
    "a word for a number": (
        lambda text: text.replace("75.0", "much"),
        "report_top1 must be a valid number",
    ),
    "not a number": (lambda text: text.replace("75.0", "nan"), "must be a finite number"),
    "no trial": (lambda text: text.replace("3,", ",", 1), "line 2"),
    "a row twice": (lambda text: text + text.splitlines()[1] + "\n", "line 3: each trial must be unique, but 3"),
    "a ratio too large": (lambda text: text.replace("0.5}", "5}"), r"line 2: keep ratios must be in \(0, 1\]"),
    "no schedule": (lambda text: text.replace("{", "[").replace("}", "]").replace(":", ","), "JSON object"),
    "an unknown form": (
        lambda text: text.replace("hard", "firm"),
        "the form of layer stages.1 must be soft, hard, matched, gradient, select, but got",
    ),
    "no forms": (lambda text: text.replace('{""stages.1"": ""hard""}', '[""hard""]'), "forms must be a JSON object"),
    "a form of another layer": (
        lambda text: text.replace('stages.1"": ""hard', 'stages.7"": ""hard'),
        "line 2: forms must name layers of keep_ratios, but got stages.7",
    ),
    "before there were forms": (lambda text: text.replace(",forms", ""), "must have the columns .*forms"),
    "a number of tokens without its share": (
        lambda text: text.replace("0.5}", "-8}"),
        "line 2: kept_shares must have exactly the layers whose keep ratio is negative, but stages.1 is in only one",
    ),
    "a size that is none": (lambda text: text.replace(",224,", ",large,"), "line 2: .*invalid literal"),
    "no shares": (lambda text: text.replace(",{}\n", ",[]\n"), "line 2: kept_shares must be a JSON object"),
}


@pytest.mark.parametrize(("damage", "rule"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_named_with_the_rule(tmp_path: Path, damage: Any, rule: str) -> None:
    layers = {"stages.0": 1.0, "stages.1": 0.5}
    one = [record(3, gflops=1.25, keep_ratios=layers, forms={"stages.1": "hard"}, img_size=224)]
    path = write_csv(trials_table(one), tmp_path / "trials.csv")
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=rule) as caught:
        read_trials(path, "ltm")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_with_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    table = trials_table([record(3)])
    for other in (table.drop(columns="rescored_kl"), table[["agreement", *table.columns.drop("agreement")]]):
        with pytest.raises(InputError, match="must have the columns"):
            read_trials(write_csv(other, path), "ltm")


def test_a_mark_of_the_byte_order_does_no_harm(tmp_path: Path) -> None:
    path = write_csv(trials_table([record(3)]), tmp_path / "trials.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_trials(path, "ltm") == [record(3)]


def test_other_sizes_are_beside_the_front_unless_searched() -> None:
    """The user named a size: smaller images are baselines, not points of the front."""
    nothing = dict.fromkeys(LAYERS, 1.0)
    plain = record(0, gflops=2.0, feasible=False, kind="baseline", keep_ratios=nothing)
    own = record(1, gflops=1.0, rescored_loss=0.9, kind="baseline", label="uniform 0.5")
    small = record(2, gflops=0.9, rescored_loss=0.6, kind="baseline", label="plain", keep_ratios=nothing, img_size=160)
    assert select_front([own, small], CostAxis()) == [small]
    assert select_front([own, small], CostAxis(one_size=True)) == [own]
    assert select_references([plain, own, small], CostAxis(one_size=True)) == [plain, own, small]
    assert select_references([plain, own, small], CostAxis()) == [plain, small]
