"""Final scores: candidates, groups of equal networks, and the answers to the reported images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import tiny
from support.records import make_record
from support.sizes import TINY_VIT

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.objective import CostAxis
from ltmsearch.engine.evaluation import Score
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.answers import ANSWERS, Answers
from ltmsearch.search.baseline_curves import further_networks
from ltmsearch.search.curve_points import BASELINES
from ltmsearch.search.driver import Driver
from ltmsearch.search.final_scores import FinalScore, _fields
from ltmsearch.search.pareto import front_ranks
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.rescoring import same_nets, select_candidates
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.trial import Evaluator, TrialResult
from ltmsearch.search.workers import Answer, Task

GFLOPS, LATENCY = CostAxis(), CostAxis(name="latency_ms")


def record(trial: int, gflops: float, loss: float, **changes: object) -> TrialRecord:
    values = {
        "trial": trial, "kind": "searched", "state": "scored", "feasible": True, "gflops": gflops, "top1": 50.0,
        "top1_se": 1.0, "loss": loss, "supernet_version": 0, "keep_ratios": {"a": 0.5},
    }  # fmt: skip
    return make_record(**{**values, **changes})  # type: ignore[arg-type]


def test_front_ranks_peel_like_an_onion() -> None:
    points = [(80.0, 1.2), (70.0, 1.0), (75.0, 1.2), (60.0, 1.1), (50.0, 1.2)]
    assert front_ranks(points, (True, False)) == [0, 0, 1, 1, 2]
    assert front_ranks([], (True, False)) == []


def test_baselines_come_on_top_and_the_infeasible_stay_out() -> None:
    plain = record(0, 1.5, 0.5, kind="baseline", label="plain", feasible=False)
    uniform = record(1, 1.1, 2.0, kind="baseline", label="uniform 0.5")
    rivals = [record(i, 1.0 + i / 100, 1.5 - i / 10) for i in range(2, 8)]
    chosen = select_candidates([plain, uniform, *rivals], 3, GFLOPS)
    assert [r.trial for r in chosen][:2] == [0, 1]
    assert len(chosen) == 5
    assert select_candidates([], 3, GFLOPS) == []


def test_candidates_cover_the_range_of_costs() -> None:
    cheap = [record(i, 1.00 + i / 1000, 0.9 - i / 10) for i in range(6)]
    costly = [record(6 + i, 1.10 + i / 1000, 1.0 + i / 10) for i in range(3)]
    chosen = select_candidates(cheap + costly, 4, GFLOPS)
    assert len(chosen) == 4
    assert 6 in {r.trial for r in chosen}, "the best of the costly ones"


def test_latency_studies_cover_the_range_of_latencies() -> None:
    rivals = [record(i, 1.0 + i / 1000, 0.9 - i / 10, latency_ms=20.0) for i in range(1, 6)]
    # By multiply-adds the last is the costliest and the worst; by the clock it is the fastest by far.
    fast = record(6, 1.006, 0.95, latency_ms=10.0)
    assert 6 not in {r.trial for r in select_candidates([*rivals, fast], 2, GFLOPS)}
    assert 6 in {r.trial for r in select_candidates([*rivals, fast], 2, LATENCY)}


def test_candidates_are_ranked_by_the_studys_measure() -> None:
    rivals = [record(0, 1.1, 0.8, kl=0.3), record(1, 1.1, 1.2, kl=0.1), record(2, 1.1, 1.3, kl=0.2)]
    assert [r.trial for r in select_candidates(rivals, 1, GFLOPS)] == [0]
    assert [r.trial for r in select_candidates(rivals, 1, CostAxis(measure="kl"))] == [1]
    with pytest.raises(ValueError, match="must have the measure of its study"):
        select_candidates([record(0, 1.1, 0.8)], 1, CostAxis(measure="kl"))


def test_trials_that_are_one_proxy_network_are_scored_once() -> None:
    dear, cheap = record(3, 1.2, 0.5), record(4, 1.1, 0.9)
    baseline = record(1, 1.3, 1.0, kind="baseline", label="uniform 0.5")
    failed = make_record(trial=6, kind="searched", state="failed", feasible=True, gflops=1.0, keep_ratios={"a": 0.5})
    other = record(5, 1.15, 0.7, keep_ratios={"a": 0.25})
    groups = same_nets([baseline, dear, cheap, other, failed], lambda r: r.schedule.keep_ratios["a"])
    assert groups == [(baseline, cheap, dear), (other,)]


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
        result = TrialResult(weights={}, score=made_up_score(task.trial, []), seconds=1.0)
        return [Answer(trial=task.trial, result=result)]

    def scores(self, schedules: Sequence[MergeSchedule], *_: Any, **options: Any) -> list[float]:
        return [float(merged(schedule)) for schedule in schedules]

    def close(self) -> None:
        pass


def merged(schedule: MergeSchedule) -> int:
    """How much a schedule does: layers that merge, and smaller images."""
    return len(schedule.merging_layers) + (schedule.img_size is not None)


def made_up_score(lost: float, predictions: list[int]) -> Score:
    return Score(top1=50.0, top1_se=1.0, loss=lost, kl=lost / 2, images=24, predictions=np.array(predictions))


def made_up(folder: Path, **changes: Any) -> StudyContext:
    return prepare(tiny(folder, **TINY_VIT | {"trials": 7, "rescore_candidates": 9, **changes}), Callbacks())


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    return made_up(tmp_path_factory.mktemp("run"))


class Final:
    """A search with made-up scores, and final scores by what merges."""

    def __init__(self, context: StudyContext, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None):
        self.scored: list[tuple[MergeSchedule, str]] = []
        self.driver = Driver(context, folder, Callbacks(), workers=MadeUp(failing))

        def score(_: Evaluator, schedule: MergeSchedule, images: str) -> Score:
            """Another answer than the plain network's for as many of 24 images as layers merge."""
            self.scored.append((schedule, images))
            different = merged(schedule)
            return made_up_score(different, [1] * different + [0] * (24 - different))

        monkeypatch.setattr(Evaluator, "score", score)
        self.driver.search(until=None)
        assert all(record.agreement is record.report_top1 is None for record in self.driver.records())
        self.driver.rescore()

    @property
    def records(self) -> list[TrialRecord]:
        return [record for record in self.driver.records() if record.report_top1 is not None]


@pytest.mark.parametrize("failing", [None, 0], ids=["plain scored", "plain failed"])
def test_reports_compare_with_the_plain_network_of_the_final_weights(
    context: StudyContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    final = Final(context, tmp_path, monkeypatch, failing)
    assert len(final.records) == (8 if failing is None else 7)
    labels = np.concatenate([labels.numpy() for _, labels in context.evaluator.held_out("report")])
    for record in final.records:
        different = len(record.schedule.merging_layers) + (record.schedule.img_size is not None)
        assert record.rescored_loss == different
        assert record.agreement == pytest.approx(100 * (1 - different / 24))
        answers = np.array([1] * different + [0] * (24 - different))
        right, plain = answers == labels, labels == 0
        assert record.report_top1 == pytest.approx(100 * right.mean())
        assert record.difference == pytest.approx(100 * (right.mean() - plain.mean()))
    reported = [schedule for schedule, images in final.scored if images == "report"]
    nets = [context.proxy_key(schedule) for schedule in reported]
    curves = further_networks(context, {record.label for record in final.records})
    assert len(nets) == len(set(nets)) == 8 + len(curves), "the plain network is scored once, also if its trial failed"
    assert reported[8:] == [one.schedule for one in curves] != []
    chosen = [schedule for schedule, images in final.scored if images == "validation"]
    assert chosen == reported[:8], "curves choose nothing"

    number = len(final.scored)
    final.driver.rescore()
    assert len(final.scored) == number, "a finished study is not scored again"
    for times, name in enumerate((BASELINES, ANSWERS), start=2):
        (tmp_path / name).unlink()
        final.driver.rescore()
        assert (tmp_path / name).exists()
        assert len(final.scored) == times * number, "except where a part of its answers is missing"


def test_with_a_teacher_reports_compare_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = made_up(tmp_path / "run", objective="kl")
    teacher = taught.evaluator.teacher
    teacher.learn(taught.evaluator.supernet.model, taught.evaluator.data, taught.evaluator.scoring, taught.settings)
    teacher.predictions["report"] = torch.eye(24, 10).roll(2, dims=1).log_softmax(1)  # classes 2, 3, 4, …
    final = Final(taught, tmp_path, monkeypatch, None)
    answers = Answers.load(tmp_path / ANSWERS)
    assert answers.plain[:8].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    (plain,) = (record for record in final.records if record.label == "plain")
    assert plain.agreement == pytest.approx(100 * np.mean(answers.plain == 0))
    assert all(record.rescored_kl == record.rescored_loss / 2 for record in final.records if record.rescored_loss)


def test_images_that_cannot_be_read_any_more_are_told(
    context: StudyContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Evaluator.held_out

    def fewer(self: Evaluator, *args: Any) -> Any:
        return [(images[1:], labels[1:]) for images, labels in original(self, *args)]

    monkeypatch.setattr(Evaluator, "held_out", fewer)
    with pytest.raises(InputError, match="reported images must stay readable .*; repeat the command"):
        Final(context, tmp_path, monkeypatch, None)


def test_the_error_of_a_single_image_is_unknown() -> None:
    one = Answers(labels=np.array([3]), groups=np.array([0]), plain=np.array([3]), trials={2: np.array([1])})
    score = FinalScore(chosen=made_up_score(1.0, [1]), reported=made_up_score(1.0, [1]))
    fields = _fields(2, score, one)
    assert (fields["report_top1"], fields["difference"], fields["agreement"]) == (0.0, -100.0, 0.0)
    assert fields["report_top1_se"] is fields["difference_se"] is fields["agreement_se"] is None
