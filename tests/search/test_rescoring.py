"""Final scores: candidates, groups of equal networks, and the expected top-1."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import tiny
from support.records import make_record

from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import Score
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.driver import Driver
from ltmsearch.search.optuna_records import RESCORED
from ltmsearch.search.pareto import front_ranks
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.rescoring import remove_trend, same_nets, select_candidates, with_expected_top1
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.trial import Evaluator, TrialResult
from ltmsearch.search.workers import Answer, Task


def record(trial: int, gflops: float, top1: float, loss: float, **changes: object) -> TrialRecord:
    values = {
        "trial": trial, "kind": "searched", "state": "scored", "feasible": True, "gflops": gflops, "top1": top1,
        "top1_se": 1.0, "loss": loss, "supernet_version": 0, "keep_ratios": {"a": 0.5},
    }  # fmt: skip
    return make_record(**{**values, **changes})  # type: ignore[arg-type]


def test_front_ranks_peel_like_an_onion() -> None:
    points = [(80.0, 1.2), (70.0, 1.0), (75.0, 1.2), (60.0, 1.1), (50.0, 1.2)]
    assert front_ranks(points, (True, False)) == [0, 0, 1, 1, 2]
    assert front_ranks([], (True, False)) == []


def test_trend_of_the_shared_weights_is_taken_out() -> None:
    versions = list(range(10))
    quality = np.array([3, 0, -1, 2, -2, 1, 0, -3, 1, -1], dtype=float)
    quality -= np.polyval(np.polyfit(versions, quality, 1), versions)  # nothing of it can be called a trend
    drifted = 60 + 1.5 * np.array(versions) + quality
    assert remove_trend(drifted.tolist(), versions) == pytest.approx(quality.tolist())
    assert remove_trend([1.0, 2.0], [0, 1]) == [1.0, 2.0]


def test_early_trials_are_not_punished_for_young_weights() -> None:
    early = [record(i, 1.0 + 0.01 * i, 60.0 + i, 1.5 - 0.01 * i, supernet_version=i) for i in range(5)]
    late = [
        record(i, 1.0 + 0.01 * (i - 5), 60.0 + i - 2, 1.5 - 0.01 * (i - 2), supernet_version=i) for i in range(5, 10)
    ]
    chosen = select_candidates(early + late, 5)
    assert {r.trial for r in chosen} & {0, 1, 2, 3, 4}


def test_baselines_come_on_top_and_the_infeasible_stay_out() -> None:
    plain = record(0, 1.5, 90.0, 0.5, kind="baseline", label="plain", feasible=False)
    uniform = record(1, 1.1, 50.0, 2.0, kind="baseline", label="uniform 0.5")
    rivals = [record(i, 1.0 + i / 100, 70.0 + i, 1.0) for i in range(2, 8)]
    chosen = select_candidates([plain, uniform, *rivals], 3)
    assert [r.trial for r in chosen][:2] == [0, 1]
    assert len(chosen) == 5
    assert select_candidates([], 3) == []


def test_candidates_cover_the_range_of_costs() -> None:
    cheap = [record(i, 1.00 + i / 1000, 80.0 + i / 10, 0.5) for i in range(6)]
    costly = [record(6 + i, 1.10 + i / 1000, 70.0, 1.0 + i / 10) for i in range(3)]
    chosen = select_candidates(cheap + costly, 4)
    assert len(chosen) == 4
    assert 6 in {r.trial for r in chosen}, "the best of the costly ones"


def test_latency_studies_cover_the_range_of_latencies() -> None:
    rivals = [record(i, 1.0 + i / 1000, 80.0 + i / 10, 0.5, latency_ms=20.0) for i in range(1, 6)]
    # By multiply-adds the last is the costliest and the worst; by the clock it is the fastest by far.
    fast = record(6, 1.006, 70.0, 0.9, latency_ms=10.0)
    assert 6 not in {r.trial for r in select_candidates([*rivals, fast], 2)}
    assert 6 in {r.trial for r in select_candidates([*rivals, fast], 2, ("latency_ms",))}


def test_trials_that_are_one_proxy_network_are_scored_once() -> None:
    dear, cheap = record(3, 1.2, 80.0, 0.5), record(4, 1.1, 70.0, 0.9)
    baseline = record(1, 1.3, 60.0, 1.0, kind="baseline", label="uniform 0.5")
    failed = make_record(trial=6, kind="searched", state="failed", feasible=True, gflops=1.0, keep_ratios={"a": 0.5})
    other = record(5, 1.15, 75.0, 0.7, keep_ratios={"a": 0.25})
    groups = same_nets([baseline, dear, cheap, other, failed], lambda r: r.schedule.keep_ratios["a"])
    assert groups == [(baseline, cheap, dear), (other,)]


def test_the_best_by_loss_is_a_candidate() -> None:
    rivals = [record(0, 1.1, 70.0, 0.8), record(1, 1.1, 70.5, 1.2), record(2, 1.1, 69.0, 1.3)]
    assert {r.trial for r in select_candidates(rivals, 2)} == {0, 1}


def again(trial: int, top1: float, loss: float | None) -> TrialRecord:
    return record(trial, 1.0, 50.0, 1.5, rescored_top1=top1, rescored_loss=loss)


def test_the_expected_top1_is_half_measured_half_predicted() -> None:
    # Through (0, 80), (1, 70), (1, 66), (2, 60) runs the line of least squares 79 - 10 · loss.
    scored = [again(0, 80.0, 0.0), again(1, 70.0, 1.0), again(2, 66.0, 1.0), again(3, 60.0, 2.0)]
    unknown = [record(4, 1.0, 99.0, 0.0), again(5, 90.0, None)]
    expected = [r.expected_top1 for r in with_expected_top1(scored + unknown)]
    assert expected[:4] == pytest.approx([79.5, 69.5, 67.5, 59.5])
    assert expected[4:] == [None, 90.0], "when it ran another weight scored it; without a loss there is only top-1"


@pytest.mark.parametrize(
    "scored",
    [
        [again(0, 80.0, 0.0), again(1, 70.0, 1.0), again(2, 60.0, 2.0)],
        [again(i, 70.0 + i, 1.0) for i in range(5)],
        [again(i, 70.0 + i, 1.0 + i) for i in range(5)],
        [],
    ],
    ids=["too few", "one loss", "the wrong way round", "none"],
)
def test_uninformative_losses_leave_the_measured_top1(scored: list[TrialRecord]) -> None:
    assert [r.expected_top1 for r in with_expected_top1(scored)] == [r.rescored_top1 for r in scored]


def test_the_expected_top1_is_a_percentage() -> None:
    bad, *_ = with_expected_top1([again(0, 1.0, 9.0), *(again(i, 90.0 - i, 0.5 + i / 100) for i in range(1, 5))])
    assert bad.expected_top1 is not None
    assert 0 <= bad.expected_top1 <= 50


class MadeUp:
    """A worker whose scores depend on the trial alone, and at most one of whose trials fails."""

    remote = False

    def __init__(self, failing: int | None = None) -> None:
        self.failing = failing
        self.tasks: list[Task] = []

    def free(self) -> int:
        return 1 - len(self.tasks)

    def start(self, task: Task, *_: Any) -> None:
        self.tasks.append(task)

    def answers(self) -> list[Answer]:
        task = self.tasks.pop()
        if task.trial == self.failing:
            return [Answer(trial=task.trial, failure="it diverged")]
        result = TrialResult(weights={}, score=made_up_score(50.0 + task.trial, []), seconds=1.0)
        return [Answer(trial=task.trial, result=result)]

    def close(self) -> None:
        pass


def made_up_score(top1: float, predictions: list[int]) -> Score:
    return Score(top1=top1, top1_se=1.0, loss=2.0 - top1 / 100, images=24, predictions=np.array(predictions))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    return prepare(tiny(tmp_path_factory.mktemp("run"), trials=4, rescore_candidates=9), Callbacks())


@pytest.mark.parametrize("failing", [None, 0], ids=["plain scored", "plain failed"])
def test_agreement_is_with_the_plain_network_of_the_final_weights(
    context: StudyContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    driver = Driver(context, tmp_path, Callbacks(), workers=MadeUp(failing))
    driver.search(until=None)
    scored: list[MergeSchedule] = []

    def score(_: Evaluator, schedule: MergeSchedule, *, images: int) -> Score:
        """Another answer than the plain network's for as many of 24 images as layers merge."""
        assert images == 24
        scored.append(schedule)
        different = len(schedule.merging_layers)
        return made_up_score(60.0 + different, [1] * different + [0] * (24 - different))

    monkeypatch.setattr(Evaluator, "score", score)
    assert all(record.agreement is None for record in driver.records()), "unknown when a trial runs"
    driver.rescore()
    records = [record for record in driver.records() if record.rescored_top1 is not None]
    assert len(records) == (5 if failing is None else 4)
    for record in records:
        share = 1 - len(record.schedule.merging_layers) / 24
        assert record.agreement == pytest.approx(100 * share)
        assert record.agreement_se == pytest.approx(100 * (share * (1 - share) / 24) ** 0.5)
    nets = [context.proxy_costs.network_key(schedule) for schedule in scored]
    assert len(nets) == len(set(nets)) == 5, "the plain network is scored once, also if its trial failed"

    earlier = driver.study.user_attrs[RESCORED]
    earlier["scores"] = {trial: values[:3] for trial, values in earlier["scores"].items()}
    driver.study.set_user_attr(RESCORED, earlier)
    driver.rescore()
    assert len(scored) == 5, "a finished study is not scored again"
    without = [record for record in driver.records() if record.rescored_top1 is not None]
    assert [r.rescored_top1 for r in without] == [r.rescored_top1 for r in records]
    assert all(record.agreement is None for record in without)
