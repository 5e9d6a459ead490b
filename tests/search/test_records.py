import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from support.records import make_record

from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import Form
from ltmsearch.search.records import (
    FORM_LETTERS,
    FRONT_COLUMNS,
    TRIALS_COLUMNS,
    BestScore,
    TrialRecord,
    front_table,
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
        "rescored_top1": 75.0,
        "rescored_top1_se": 0.7,
        "rescored_loss": 0.8,
        "keep_ratios": dict(zip(LAYERS, (1.0, 0.5, 0.7), strict=True)),
    }
    return make_record(trial=trial, **(defaults | fields))


UNSCORED = {
    "feasible": False,
    "gflops": 1.3,
    **dict.fromkeys(("top1", "top1_se", "loss", "rescored_top1", "rescored_top1_se", "rescored_loss")),
}


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
        record(3, top1_se=None, rescored_top1=None, rescored_top1_se=None, rescored_loss=None, supernet_version=0),
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
                rescored_top1=100 * draw.random(),
                expected_top1=draw.choice([None, 100 * draw.random()]),
                agreement=draw.choice([None, 100 * draw.random()]),
                agreement_se=draw.choice([None, draw.random()]),
                supernet_version=trial,
                keep_ratios={layer: draw.random() for layer in LAYERS},
                forms={layer: draw.choice(["soft", "hard"]) for layer in LAYERS if draw.random() < 0.5},
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
        ({"top1": None}, "top1 must be given if and only if"),
        ({"state": "failed"}, "top1 must be given if and only if"),
        ({"state": "failed", "top1": None}, "rescored_top1 needs state 'scored'"),
        ({"state": "failed", "top1": None, "rescored_top1": None, "agreement": 90.0}, "agreement needs state 'scored'"),
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
    assert record(0).score == BestScore(75.0, 0.7, 0.8, True)
    assert record(0, rescored_top1=None).score == BestScore(70.0, 1.1, 0.9, False)
    assert record(0, **UNSCORED | {"state": "failed"}).score is None
    assert str(record(0).score) == "75.0 ± 0.7"
    assert str(BestScore(75.04, None, None, True)) == "75.0"


def test_a_schedule_reads_by_stage() -> None:
    layers = ["stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0", "blocks.10"]
    forms = {layers[1]: "hard", layers[2]: "soft", layers[3]: "hard"}
    read = record(0, keep_ratios=dict(zip(layers, (1.0, 0.5, 0.07, 4 / 7), strict=True)), forms=forms)
    stages = read.by_stage(FORM_LETTERS)
    assert stages == [("stages.2.1.transformer", "1 .5h"), ("stages.3.1.transformer", ".07"), ("blocks", ".571h")]


def test_the_front_is_feasible_rescored_and_non_dominated() -> None:
    records = [
        record(0, kind="baseline", label="plain", feasible=False, gflops=1.5, rescored_top1=99.0),
        record(1, gflops=1.10, rescored_top1=80.0),
        record(2, gflops=1.15, rescored_top1=79.0),  # beaten by 1
        record(3, gflops=1.00, top1=99.0, rescored_top1=None),  # not re-scored
        record(4, gflops=1.19, rescored_top1=84.0, rescored_loss=0.5),
        record(5, gflops=1.19, rescored_top1=84.0, rescored_loss=0.4),  # as 4, with the lower loss
        record(6, gflops=1.19, rescored_top1=84.0, rescored_loss=None),
        record(7, gflops=1.19, rescored_top1=84.0, rescored_loss=0.4),  # as 5, later
        record(8, gflops=1.05, kind="baseline", label="uniform 0.5", rescored_top1=71.0),
        record(9, gflops=1.30, **{k: v for k, v in UNSCORED.items() if k != "gflops"} | {"state": "over budget"}),
    ]
    expected = [5, 1, 8]
    assert [r.trial for r in select_front(records)] == expected
    assert [r.trial for r in select_front(reversed(records))] == expected
    assert select_front(select_front(records)) == select_front(records)
    assert select_front([]) == []


def test_the_front_goes_by_the_expected_top1() -> None:
    records = [
        record(1, gflops=1.2, rescored_top1=75.0, expected_top1=75.5),  # measured no better than the cheaper ones
        record(2, gflops=1.1, rescored_top1=75.5, expected_top1=75.0),
        record(3, gflops=1.0, rescored_top1=74.0, expected_top1=75.0),  # as good as 2, and cheaper
    ]
    assert [r.trial for r in select_front(records)] == [1, 3]
    assert front_table(records).expected_top1.tolist() == [75.5, 75.0]
    assert front_table(records).top1.tolist() == [75.0, 74.0], "the table has the measured values"
    assert record(0, rescored_top1=None).ranking_top1 == 70.0
    uniform = [dataclasses.replace(r, kind="baseline") for r in records]
    assert select_references(uniform) == [uniform[0]]


def test_the_front_of_a_latency_study_weighs_latency() -> None:
    records = [
        record(0, gflops=1.0, latency_ms=30.0, rescored_top1=80.0),
        record(1, gflops=1.5, latency_ms=20.0, rescored_top1=79.0),  # dearer by multiply-adds, but faster
        record(2, gflops=1.1, latency_ms=31.0, rescored_top1=75.0),
        record(3, gflops=0.9, latency_ms=20.0, rescored_top1=79.0, rescored_loss=0.7),
        record(4, gflops=0.8, latency_ms=10.0, feasible=False, rescored_top1=90.0),
        record(5, gflops=0.8, latency_ms=15.0, latency_measured_ms=99.0, rescored_top1=60.0),
    ]
    assert [r.trial for r in select_front(records, ("latency_ms",))] == [0, 3, 5], "predicted, not measured"
    assert [r.trial for r in select_front(records)] == [0, 3, 5]
    slower = [*records[:3], record(3, gflops=0.9, latency_ms=32.0, rescored_top1=79.0), *records[4:]]
    assert [r.trial for r in select_front(slower, ("latency_ms",))] == [0, 1, 5]
    assert [r.trial for r in select_front(slower, ("gflops",))] == [0, 3, 5]
    assert front_table(slower, ("latency_ms",)).trial.tolist() == [0, 1, 5]
    assert front_table(slower, ("latency_ms",)).latency_measured_ms.tolist()[2] == 99.0
    with pytest.raises(ValueError, match="`latency_ms` of trial 7 is unknown"):
        select_front([record(7)], ("latency_ms",))


def test_references_are_plain_and_the_best_baseline() -> None:
    plain = record(0, kind="baseline", feasible=False, keep_ratios=dict.fromkeys(LAYERS, 1.0))
    low, high = (record(i, kind="baseline", label="uniform", rescored_top1=60.0 + i) for i in (1, 2))
    early = record(3, kind="baseline", label="uniform", top1=90.0, rescored_top1=None)
    dear = record(4, kind="baseline", label="uniform", feasible=False, rescored_top1=95.0)
    unscored = record(5, kind="baseline", label="uniform", **UNSCORED | {"state": "over budget"})
    searched = record(6, rescored_top1=99.0)
    assert select_references([searched, unscored, dear, early, low, high, plain]) == [plain, high]
    assert select_references([early, dear, searched]) == [early]
    assert select_references([unscored]) == []


def test_front_table_has_published_columns_and_final_scores(tmp_path: Path) -> None:
    forms: dict[str, Form] = {LAYERS[1]: "hard"}
    frame = front_table(
        [
            record(
                3,
                gflops=1.1,
                ib_weight=0.1,
                supernet_version=2,
                rescored_version=4,
                forms=forms,
                agreement=93.75,
                agreement_se=1.25,
            ),
            record(4, gflops=1.2),
        ]
    )
    assert ", ".join(frame.columns) == (
        "trial, gflops, gflops_sd, gflops_quantile, latency_ms, latency_measured_ms, latency_measured_se_ms, "
        "tokens_sent, top1, top1_se, loss, expected_top1, agreement, agreement_se, ib_weight, supernet_version, "
        "keep_ratios, forms"
    )
    assert len(frame) == 1  # trial 4 is dearer and no better
    row = frame.iloc[0]
    assert (row.trial, row.gflops, row.top1, row.top1_se, row.loss) == (3, 1.1, 75.0, 0.7, 0.8)
    assert (row.ib_weight, row.supernet_version) == (0.1, 4)
    assert (row.agreement, row.agreement_se) == (93.75, 1.25)

    assert json.loads(row.forms) == forms
    path = write_csv(front_table([record(3)]), tmp_path / "front.csv")
    ratios = (
        '"{""stages.2.1.transformer.0"": 1.0, ""stages.2.1.transformer.1"": 0.5, ""stages.3.1.transformer.0"": 0.7}"'
    )
    assert path.read_text().splitlines() == [",".join(FRONT_COLUMNS), f"3,1.1,,,,,,,75.0,0.7,0.8,,,,,,{ratios},{{}}"]


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
        "rescored_top1 must be a valid number",
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
    "no shares": (lambda text: text.replace(",{}\n", ",[]\n"), "line 2: kept_shares must be a JSON object"),
}


@pytest.mark.parametrize(("damage", "rule"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_named_with_the_rule(tmp_path: Path, damage: Any, rule: str) -> None:
    one = [record(3, gflops=1.25, keep_ratios={"stages.0": 1.0, "stages.1": 0.5}, forms={"stages.1": "hard"})]
    path = write_csv(trials_table(one), tmp_path / "trials.csv")
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=rule) as caught:
        read_trials(path, "ltm")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [("agreement", "agreement_se"), ("agreement_se",)], ids=["both", "one"])
@pytest.mark.parametrize("shares", [(), ("kept_shares",)], ids=["shares", "no shares"])
def test_tables_by_earlier_versions_are_read(tmp_path: Path, missing: tuple[str, ...], shares: tuple[str, ...]) -> None:
    records = [record(3, agreement=90.0, agreement_se=1.5, forms={LAYERS[1]: "hard"}), record(4, agreement=80.0)]
    path = write_csv(trials_table(records).drop(columns=[*missing, *shares]), tmp_path / "trials.csv")
    assert read_trials(path, "ltm") == [dataclasses.replace(r, **dict.fromkeys(missing)) for r in records]
    path.write_text(path.read_text().replace("3,searched", "3", 1))
    with pytest.raises(InputError, match="line 2: a row must have"):
        read_trials(path, "ltm")
    moved = trials_table(records)[["agreement", *(n for n in TRIALS_COLUMNS if n != "agreement")]]
    with pytest.raises(InputError, match="must have the columns"):
        read_trials(write_csv(moved, path), "ltm")


def test_a_mark_of_the_byte_order_does_no_harm(tmp_path: Path) -> None:
    path = write_csv(trials_table([record(3)]), tmp_path / "trials.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_trials(path, "ltm") == [record(3)]
