"""Proposals of the sampler `auto`: screened once, kept in the study, and the same whatever interrupts it."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from support.command_line import Notes, tiny, tiny_study
from support.faults import fingerprint
from support.records import read_equal_columns
from support.sizes import TINY_VIT

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.search.answers import ANSWERS
from ltmsearch.search.description import describe
from ltmsearch.search.driver import Driver
from ltmsearch.search.proposals import SCREENED, Proposals
from ltmsearch.search.run import Run
from ltmsearch.search.samplers import ScreeningSampler
from ltmsearch.search.setup import prepare
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.teacher import TEACHER
from ltmsearch.search.trial import IB_WEIGHT, Evaluator

TAUGHT: dict[str, Any] = {**TINY_VIT, "objective": "kl"}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with a teacher, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("taught"), **TAUGHT)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def study_in(run: Path) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def rounds_of(run: Path) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = study_in(run).user_attrs[SCREENED]
    return rounds


def schedules(run: Path) -> list[tuple[int, ...]]:
    """Choice indices of each trial."""
    return [tuple(v for n, v in trial.params.items() if n != IB_WEIGHT) for trial in study_in(run).trials]


def assert_same(run: Path, whole: Path) -> None:
    pd.testing.assert_frame_equal(read_equal_columns(run), read_equal_columns(whole))
    for name in ("front.csv", ANSWERS, TEACHER):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert rounds_of(run) == rounds_of(whole)
    assert fingerprint(run) == fingerprint(whole)


def test_every_searched_trial_is_one_that_screening_promoted(whole: Path) -> None:
    (only,) = rounds_of(whole)
    records = Run.open(whole).trials
    searched = [tuple(schedules(whole)[record.trial]) for record in records if record.kind == "searched"]
    assert searched == [tuple(indices) for indices, _ in only["promoted"]]
    assert only["version"] == sum(record.kind == "baseline" for record in records) - 1, "after the baselines"
    assert only["schedules"] == 16
    assert all(record.state == "scored" and record.feasible for record in records if record.kind == "searched")
    scores = [score for _, score in only["promoted"]]
    assert scores == sorted(scores)


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "name", "call"),
    [
        pytest.param(Evaluator, "score", 7, id="while screening"),
        pytest.param(Proposals, "_screen", 1, id="before screening", marks=SLOW),
        pytest.param(optuna.Trial, "suggest_int", 32, id="while suggesting", marks=SLOW),
        pytest.param(SharedWeights, "save", 8, id="before saving the weights", marks=SLOW),
        pytest.param(Driver, "_store", 8, id="between saving and storing"),
        pytest.param(Driver, "rescore", 1, id="before the final scores", marks=SLOW),
    ],
)
def test_a_crash_changes_no_proposal(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, call: int
) -> None:
    original, left = getattr(target, name), [call]

    def crash_once(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("power cut")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(target, name, crash_once)
        run_study(tiny(tmp_path / "run", **TAUGHT))
    run_study(tiny(tmp_path / "run", **TAUGHT))
    assert_same(tmp_path / "run", whole)


def stopped_after_screening(run: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A study whose proposals are stored, and none is a trial yet."""
    original = ScreeningSampler.sample_relative

    def crash(self: ScreeningSampler, *args: Any) -> dict[str, Any]:
        if original(self, *args):
            raise RuntimeError("power cut")
        return {}

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(ScreeningSampler, "sample_relative", crash)
        run_study(tiny(run, **TAUGHT | changes))
    assert len(rounds_of(run)) == 1


@pytest.mark.long
def test_nothing_is_screened_twice(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after_screening(tmp_path / "run", monkeypatch)
    monkeypatch.setattr(Proposals, "_screen", None)
    run_study(tiny(tmp_path / "run", **TAUGHT))
    assert_same(tmp_path / "run", whole)


def test_more_trials_are_screened_with_the_weights_of_then(run: Path) -> None:
    before, notes = schedules(run), Notes()
    result = run_study(tiny(run, **TAUGHT | {"trials": 10}), notes)
    _, second = rounds_of(run)
    assert second["version"] == 8
    assert len(second["promoted"]) == 2
    assert sum(line.startswith("screened") for line in notes.lines) == 1
    assert schedules(run)[: len(before)] == before
    assert set(schedules(run)[len(before) :]) == {tuple(indices) for indices, _ in second["promoted"]}
    assert max(Counter(schedules(run)).values()) == 1, "nothing is proposed that is a trial already"
    assert len(result.trials) == len(before) + 2


@pytest.mark.long
def test_a_queued_trial_is_not_proposed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    stopped_after_screening(run, monkeypatch)
    study = study_in(run)
    names = [name for name in study.trials[0].params if name != IB_WEIGHT]
    promoted = [tuple(indices) for indices, _ in rounds_of(run)[0]["promoted"]]
    study.enqueue_trial(dict(zip(names, promoted[1], strict=True)))
    run_study(tiny(run, **TAUGHT))
    assert Counter(schedules(run))[promoted[1]] == 1
    assert Counter(schedules(run))[promoted[0]] == 1
    assert len(Run.open(run).trials) == 9


def test_a_tighter_budget_is_screened_anew(run: Path) -> None:
    """The best of the new round come first."""
    before = len(schedules(run))
    run_study(tiny(run, **TAUGHT | {"budget_gflops": 0.0042, "trials": 10}))
    (only,) = rounds_of(run)
    assert schedules(run)[before:] == [tuple(indices) for indices, _ in only["promoted"]]
    assert all(record.feasible and record.gflops <= 0.0042 for record in Run.open(run).trials[before:])


@pytest.mark.long
def test_a_range_of_budgets_gets_proposals_inside_only(tmp_path: Path) -> None:
    result = run_study(tiny(tmp_path / "run", **TAUGHT | {"budget_gflops": "0.0041-0.0044", "trials": 12}))
    searched = [record for record in result.trials if record.kind == "searched"]
    assert len(searched) >= 3
    assert all(record.state == "scored" and 0.00407 <= record.gflops <= 0.0044 for record in searched)


SMALL_SPACE = """schema_version: 1
family: vit
keep_ratios: [1.0]
forms: [matched]
layers:
  - {pattern: blocks.0, keep_ratios: [1.0, 0.9, 0.8]}
"""


@pytest.mark.slow
def test_a_space_that_is_used_up_ends_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SMALL_SPACE)
    space, notes = str(tmp_path / "space.yaml"), Notes()
    result = run_study(tiny(tmp_path / "run", **TAUGHT | {"space": space, "trials": 9}), notes)
    assert sum(record.state == "scored" and record.label != "plain" for record in result.trials) == 9
    assert max(Counter(schedules(tmp_path / "run")).values()) > 1
    assert sum(line.startswith("screened") for line in notes.lines) <= 2, "there is nothing to find any more"


def test_missing_answers_are_given_again(run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / ANSWERS).unlink()
    monkeypatch.setattr(Evaluator, "evaluate", None)
    run_study(tiny(run, **TAUGHT))
    assert_same(run, whole)


def test_the_start_tells_how_many_trials_are_baselines(tmp_path: Path) -> None:
    context = prepare(tiny(tmp_path / "many", **TAUGHT), Callbacks())
    number = len(context.settled.baselines or [])
    assert any(line.startswith(f"trials: 8, {number} of them baselines; ") for line in describe(context))
    few = prepare(tiny(tmp_path / "few", **TAUGHT | {"trials": number}), Callbacks())
    assert any(
        f"no more than the {number} baselines, so that no schedule is searched" in line for line in describe(few)
    )
