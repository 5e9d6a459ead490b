"""Curves of baselines: which networks are on them, and their scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.records import make_record
from support.sizes import TINY, TINY_VIT

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError
from ltmsearch.search.answers import Answers
from ltmsearch.search.baseline_curves import further_networks, score_curves
from ltmsearch.search.curve_points import CurvePoint, read_curves, write_curves
from ltmsearch.search.setup import StudyContext, prepare


def context(**changes: Any) -> StudyContext:
    return prepare(StudySettings.make("test", **{**TINY, **TINY_VIT, **changes}), Callbacks())


@pytest.fixture(scope="module")
def usual() -> StudyContext:
    return context()


def costs(found: StudyContext, curve: str) -> list[float]:
    """Shares of the budget."""
    limit = found.budgets[0].limit
    return [
        found.costs_at(one.schedule).macs(one.schedule) / limit for one in further_networks(found) if one.curve == curve
    ]


def test_further_networks_are_around_the_budget(usual: StudyContext) -> None:
    below, above = costs(usual, "one ratio")
    assert 0.8 < below < 1 < above < usual.costs.base / usual.budgets[0].limit
    sizes = [one.schedule.img_size for one in further_networks(usual) if one.curve == "smaller images"]
    known = {one.img_size for one in usual.settled.baselines or () if one.keep_ratio == 1}
    assert not set(sizes) & known, "the largest size within the budget is a trial"
    assert all(one.schedule.merging_layers == () or one.curve != "smaller images" for one in further_networks(usual))


def test_a_range_has_levels_all_over_it() -> None:
    found = context(budget_gflops="0.0036-0.0044")
    shares = costs(found, "one number of tokens")
    assert all(0.7 < share <= 1 for share in shares)
    assert len({one.label for one in further_networks(found)}) == len(further_networks(found))


def test_they_are_scored_with_the_present_weights_on_the_reported_images(usual: StudyContext) -> None:
    labels = np.concatenate([labels.numpy() for _, labels in usual.evaluator.held_out("report")])
    plain = (labels + (np.arange(len(labels)) % 3 == 0)) % 10
    own = Answers(labels=labels, groups=np.arange(len(labels)), plain=plain)
    found = {point.label: point for point in score_curves(usual, [], own, Callbacks())}
    assert set(found) == {one.label for one in further_networks(usual, ())}, "no trial is scored"
    for one in further_networks(usual, ()):
        right = usual.evaluator.score(one.schedule, "report").predictions == labels
        assert found[one.label].report_top1 == pytest.approx(100 * right.mean())
        assert found[one.label].difference == pytest.approx(100 * (right.mean() - (plain == labels).mean()))
        assert found[one.label].gflops == usual.costs_at(one.schedule).gflops(one.schedule)
    short = Answers(labels=labels[1:], groups=np.arange(len(labels) - 1), plain=plain[1:])
    with pytest.raises(InputError, match="must stay readable"):
        score_curves(usual, [], short, Callbacks())


def test_a_network_is_once_on_a_curve_after_the_budget_was_lowered(usual: StudyContext) -> None:
    """Baselines stay those of the first budget: they are scored again, though they cost more than the present one."""
    (budget,) = usual.budgets
    lowered = replace(usual, budgets=(replace(budget, limit=round(0.8 * budget.limit)),))
    labels = np.concatenate([labels.numpy() for _, labels in usual.evaluator.held_out("report")])
    baselines = usual.settled.baselines or []
    assert any(one.label in {other.label for other in further_networks(lowered, ())} for one in baselines)
    schedules = [usual.space.schedule(one.indices(usual.space)) for one in baselines]
    records = [
        make_record(
            trial=number, kind="baseline", label=one.label, state="scored", feasible=False, top1=50.0, gflops=0.004,
            keep_ratios={layer: max(ratio, 0.1) for layer, ratio in schedule.keep_ratios.items()},
        )
        for number, (one, schedule) in enumerate(zip(baselines, schedules, strict=True))
    ]  # fmt: skip
    own = Answers(
        labels=labels, groups=np.arange(len(labels)), plain=labels, trials={record.trial: labels for record in records}
    )
    points = score_curves(lowered, records, own, Callbacks())
    assert len({point.label for point in points}) == len(points)
    assert any(point.trial is None and 0.0031 < point.gflops < 0.0036 for point in points), "at the new budget"


def test_baselines_that_are_not_fitted_have_no_curves(usual: StudyContext) -> None:
    """As under a latency budget, and where costs are measured."""
    found = replace(usual, settled=usual.settled.model_copy(update={"baselines": None}))
    assert further_networks(found) == []
    own = Answers(labels=np.zeros(2, dtype=int), groups=np.arange(2), plain=np.zeros(2, dtype=int))

    class Silent(Callbacks):
        def advance(self, done: int, text: str = "") -> None:
            raise AssertionError("nothing is scored")

    assert score_curves(found, [], own, Silent()) == []


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    points = [
        CurvePoint(label="uniform 1, 2", curve="one ratio", trial=1, gflops=1 / 3, report_top1=80.0, difference=-1.5),
        CurvePoint(label="plain at 98 px", curve="smaller images", gflops=0.5, report_top1=81.0, difference=0.0),
    ]
    path = write_curves(points, tmp_path / "baselines.csv")
    assert read_curves(path) == points
    path.write_text(path.read_text().replace("smaller images", "larger images"))
    with pytest.raises(InputError, match=r"baselines\.csv, line 3: curve must be"):
        read_curves(path)
