"""A study under a range of budgets, under other budgets than it began with, and as the start of another."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image
from support.command_line import tiny, tiny_study

from ltmsearch import StudySettings, run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.initial_trials import initial_trials
from ltmsearch.search.records import select_front
from ltmsearch.search.run import Run
from ltmsearch.search.setup import BELOW_RANGE, prepare
from ltmsearch.search.trial import Evaluator
from ltmsearch.search.warm_start import Prior, nearest

START: dict[str, Any] = {"sampler": "random", "budget_gflops": 0.24, "trials": 8}
"""Of the finished study: it has proposals over its budget."""


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG starts a browser; its own tests do that."""
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished study with rejected proposals, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("finished"), **START)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def studies(run: Path) -> list[optuna.Study]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    return [optuna.load_study(study_name=n, storage=storage) for n in optuna.get_all_study_names(storage)]


def scores(result: Run) -> dict[int, tuple[float, float | None]]:
    return {r.trial: (r.gflops, r.top1) for r in result.trials if r.state == "scored"}


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished study under a range of budgets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        run = tmp_path_factory.mktemp("range") / "run"
        return run_study(tiny(run, budget_gflops="0.24-0.25", trials=10, sampler="random"))


class TestRange:
    def test_trials_spread_over_the_range(self, ranged: Run) -> None:
        lowest = 0.24 - BELOW_RANGE * 0.01
        trained = [r for r in ranged.trials if r.state == "scored" and r.label != "plain"]
        assert len(trained) == 10
        assert all(lowest <= r.gflops <= 0.25 for r in trained)
        start_up = [r.gflops for r in trained if r.kind == "start-up"]
        assert max(start_up) > 0.248
        assert min(start_up) < 0.24, "the lowest budget has points"

    def test_proposals_outside_are_never_trained_and_told_as_infeasible(self, ranged: Run) -> None:
        below = [r for r in ranged.trials if r.state == "below range"]
        over = [r for r in ranged.trials if r.state == "over budget"]
        assert below
        assert over
        assert all(r.gflops < 0.24 and r.feasible and r.top1 is None for r in below)
        assert all(r.gflops > 0.25 and not r.feasible for r in over)
        (study,) = studies(ranged.folder)
        told = {t.number: max(t.constraints.values()) for t in study.trials}
        assert all(told[r.trial] > 0 for r in below + over)

    def test_the_range_is_kept_in_the_settings(self, ranged: Run) -> None:
        stored = StudySettings.load(ranged.folder / "settings.yaml")
        assert (stored.lowest_gflops, stored.budget_gflops) == (0.24, 0.25)
        assert "0.24-0.25gflops" in str(stored.study)
        (bench,) = [prepare(tiny(ranged.folder, budget_gflops="0.24-0.25"), Callbacks())]
        assert any("budgets 0.24 to 0.25" in line for line in bench.describe())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.3-0.2", "must be LOW-HIGH with LOW < HIGH, such as 1.1-1.4, but got 0.3-0.2"),
        ("0.2-", "budget_gflops must be a valid number"),
        ("much", "budget_gflops must be a valid number"),
        ("0.2-0.3-0.4", "budget_gflops must be a valid number"),
    ],
)
def test_ranges_that_are_none_are_told(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        StudySettings.make("run", backbone="mobilevit_xxs", budget_gflops=given)
    assert "\n" not in str(caught.value)


def test_a_range_that_begins_below_what_merging_reaches_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--budget-gflops 0.1-0.27 is too low"):
        run_study(tiny(tmp_path / "run", budget_gflops="0.1-0.27"))
    assert not (tmp_path / "run").exists()


class TestOtherBudgets:
    def test_a_tighter_one_needs_no_training_and_the_old_one_comes_back(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, front = pd.read_csv(run / "trials.csv"), (run / "front.csv").read_text()

        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("a trial ran")

        monkeypatch.setattr(Evaluator, "evaluate", never)
        tighter = run_study(tiny(run, **{**START, "budget_gflops": 0.23}))
        after = pd.read_csv(run / "trials.csv")
        columns = ["trial", "kind", "label", "gflops", "top1", "loss", "keep_ratios"]
        pd.testing.assert_frame_equal(after[columns], before[columns])
        assert (after.feasible == (after.gflops <= 0.23)).all()
        assert tighter.front
        assert all(record.gflops <= 0.23 for record in tighter.front)
        assert StudySettings.load(run / "settings.yaml").budget_gflops == 0.23
        run_study(tiny(run, **START))
        assert (run / "front.csv").read_text() == front

    def test_every_trial_is_told_again(self, run: Path) -> None:
        run_study(tiny(run, **{**START, "budget_gflops": 0.23}))
        (study,) = studies(run)
        table = pd.read_csv(run / "trials.csv").set_index("trial")
        for trial in study.trials:
            excess = table.gflops[trial.number] - 0.23
            assert trial.constraints["GFLOPs over budget"] == pytest.approx(excess, abs=1e-9)
            assert trial.system_attrs["constraints"] == [trial.constraints["GFLOPs over budget"]]

    def test_under_a_looser_one_what_was_rejected_is_unknown_and_more_trials_run(self, run: Path) -> None:
        before = pd.read_csv(run / "trials.csv")
        loose = float(before.gflops[before.state == "over budget"].min()) + 1e-6
        result = run_study(tiny(run, **{**START, "budget_gflops": loose, "trials": START["trials"] + 2}))
        after = pd.read_csv(run / "trials.csv")
        unknown = set(before.trial[(before.state == "over budget") & (before.gflops <= loose)])
        assert unknown
        assert unknown.isdisjoint(after.trial)
        trained = after[(after.state == "scored") & (after.label != "plain")]
        assert len(trained) == START["trials"] + 2
        known = scores(result)
        assert all(known[t.trial] == (t.gflops, t.top1) for t in before[before.state == "scored"].itertuples())
        (study,) = studies(run)
        assert {study.trials[number].state for number in unknown} == {TrialState.FAIL}
        back = run_study(tiny(run, **{**START, "trials": START["trials"] + 2}))
        assert {r.state for r in back.trials if r.trial in unknown} == {"over budget"}
        assert unknown <= {r.trial for r in back.trials}

    def test_cut_off_while_telling_again(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        number = len(studies(run)[0].trials)
        original, left = optuna.Study.add_trial, [3]

        def dies(self: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            original(self, trial)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(optuna.Study, "add_trial", dies)
            run_study(tiny(run, **{**START, "budget_gflops": 0.23}))
        assert len(studies(run)) == 2, "the whole one and half of the next"
        run_study(tiny(run, **{**START, "budget_gflops": 0.23}))
        (study,) = studies(run)
        assert len(study.trials) == number

    def test_another_kind_of_cost_is_refused(self, run: Path) -> None:
        before = (run / "settings.yaml").read_bytes()
        with pytest.raises(InputError, match=r"contains a study without a budget in ms, which may change its limit"):
            run_study(tiny(run, **START, budget_ms=9.0))
        assert (run / "settings.yaml").read_bytes() == before


class TestResumeFrom:
    def test_weights_and_front_come_from_the_earlier_study(self, finished: Path, tmp_path: Path) -> None:
        bench = prepare(
            tiny(tmp_path / "run", resume_from=str(finished), budget_gflops=0.25, base_steps=None), Callbacks()
        )
        loaded = load_checkpoint(finished)
        assert loaded is not None
        own = bench.evaluator.supernet.state_dict()
        assert all(torch.equal(own[name], value) for name, value in loaded[0].items())
        assert bench.settings.base_steps == 0, "the same data need no second warm-up"
        assert bench.prior is not None
        wanted = [r for r in bench.prior.front if r.gflops <= 0.23]
        first = [t for t in initial_trials(bench, np.random.default_rng(0)) if t.label.startswith("trial ")]
        assert {t.label for t in first} <= {f"trial {r.trial} of {bench.prior.settings.study}" for r in wanted}
        schedules = {bench.space.schedule(t.indices) for t in first}
        assert schedules <= {r.schedule for r in wanted}

    def test_the_whole_way_with_another_operator(self, finished: Path, tmp_path: Path) -> None:
        notes: list[str] = []

        class Listener(Callbacks):
            def note(self, text: str) -> None:
                notes.append(text)

        result = run_study(
            tiny(tmp_path / "run", resume_from=str(finished), operator="tome", base_steps=None, trials=5), Listener()
        )
        assert result.front
        assert any("ignored, without a place in this network" in note for note in notes)
        assert any(f"starts from the weights of {finished}" in note for note in notes)
        assert any(r.label.endswith("digits") for r in result.trials), "its front is tried"

    def test_on_other_images_with_other_classes(self, finished: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for split, number in (("train", 12), ("validation", 8)):
            for name in ("a", "b", "c"):
                folder = tmp_path / "images" / split / name
                folder.mkdir(parents=True)
                for i in range(number):
                    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        settings = tiny(tmp_path / "run", resume_from=str(finished), data_dir=str(tmp_path / "images"))
        bench = prepare(settings, Callbacks())
        loaded = load_checkpoint(finished)
        assert loaded is not None
        own = bench.evaluator.supernet.state_dict()
        kept = {name for name, value in own.items() if torch.equal(value, loaded[0][name])}
        assert own.keys() - kept == {"model.head.fc.weight", "model.head.fc.bias"}
        assert own["model.head.fc.weight"].shape[0] == 3

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            (
                "settings.yaml",
                "--resume-from must be the run directory of a finished or stopped study.*has no settings.yaml",
            ),
            ("supernet.safetensors", "has no supernet.safetensors"),
            ("trials.csv", "has no trials.csv"),
        ],
    )
    def test_what_is_no_study_is_told(self, run: Path, tmp_path: Path, missing: str, message: str) -> None:
        (run / missing).unlink()
        with pytest.raises(InputError, match=message):
            Prior.open(run, backbone="mobilevit_xxs")

    def test_a_study_of_another_backbone_is_told(self, finished: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="must be a study of vit_tiny_patch16_224, but .* is of mobilevit_xxs"):
            Prior.open(finished, backbone="vit_tiny_patch16_224")

    def test_one_start_at_a_time(self) -> None:
        with pytest.raises(InputError, match="checkpoint and resume_from cannot both be given"):
            StudySettings.make("run", backbone="mobilevit_xxs", budget_gflops=1, resume_from="a", checkpoint="b")

    def test_nearest_keeps_what_the_space_has_and_takes_the_next_best_elsewhere(self, finished: Path) -> None:
        space = prepare(tiny(finished, **START), Callbacks()).space
        for indices in space.random(np.random.default_rng(0), 20):
            assert nearest(space, space.schedule(indices)).tolist() == indices.tolist()
        first = space.layers[0]
        other = MergeSchedule(keep_ratios={first: 0.44}, operator="tome")
        choice = space.choices[0][nearest(space, other)[0]]
        distances = {abs(c.keep_ratio - 0.44) for c in space.choices[0] if c.keep_ratio < 1}
        assert abs(choice.keep_ratio - 0.44) == min(distances)
        assert not nearest(space, other)[1:].any(), "plain layers stay plain"


def test_the_front_of_a_range_serves_every_budget_in_it(finished: Path) -> None:
    records = Prior.open(finished, backbone="mobilevit_xxs").front
    assert list(records) == select_front(records)


def test_uniform_schedules_come_in_every_form_and_the_range_is_spread_over_early(finished: Path) -> None:
    bench = prepare(tiny(finished, budget_gflops=0.26, trials=24), Callbacks())
    first = initial_trials(bench, np.random.default_rng(0))
    labels = ["plain", "uniform 0.5", "uniform 0.7 hard", "uniform 0.35", "uniform 0.5 hard"]
    assert [t.label for t in first[:5]] == labels, "of each form the two dearest within the budget"
    hard = bench.space.schedule(first[4].indices)
    assert set(hard.keep_ratios.values()) == {0.5}
    assert set(hard.forms.values()) == {"hard"}
    covering = [bench.costs.gflops(bench.space.schedule(t.indices)) for t in first[5:]]
    assert len(covering) == 24 / 3 - 2
    width = max(covering) - min(covering)
    assert max(covering[:2]) - min(covering[:2]) > width / 3
    assert max(np.diff(sorted(covering[:4]))) < width / 2, "four of them leave no large gap"
    assert len({tuple(t.indices) for t in first}) == len(first)
