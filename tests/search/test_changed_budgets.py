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
from support.command_line import Notes, image_folder, tiny, tiny_study
from support.finished import REJECTING
from support.sizes import TINY_VIT
from support.spaces import SOFT_AND_HARD

from ltmsearch import StudySettings, run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.budgets import BELOW_RANGE
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.description import describe
from ltmsearch.search.initial_trials import initial_trials
from ltmsearch.search.run import Run
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import Evaluator
from ltmsearch.search.warm_start import Prior, nearest


@pytest.fixture
def run(rejecting: Path, tmp_path: Path) -> Path:
    """A copy of a finished study with rejected proposals."""
    return Path(shutil.copytree(rejecting, tmp_path / "run"))


def studies(run: Path) -> list[optuna.Study]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    return [optuna.load_study(study_name=n, storage=storage) for n in optuna.get_all_study_names(storage)]


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished study under a range of budgets."""
    folder = tmp_path_factory.mktemp("range")
    return Run.open(tiny_study(folder, budget_gflops="0.24-0.25", trials=10, sampler="random"))


@pytest.mark.slow
class TestRange:
    def test_trials_spread_over_the_range(self, ranged: Run) -> None:
        lowest = 0.24 - BELOW_RANGE * 0.01
        trained = [r for r in ranged.trials if r.state == "scored" and r.label != "plain"]
        assert len(trained) == 10
        assert all(lowest <= r.gflops <= 0.25 for r in trained)
        start_up = [r.gflops for r in trained if r.kind == "start-up"]
        assert max(start_up) > 0.248
        assert min(start_up) < 0.24, "the lowest budget has points"

    def test_proposals_outside_are_infeasible_and_not_trained(self, ranged: Run) -> None:
        below = [r for r in ranged.trials if r.state == "below range"]
        over = [r for r in ranged.trials if r.state == "over budget"]
        assert below
        assert over
        assert all(r.gflops < 0.24 and r.feasible and r.top1 is None for r in below)
        assert all(r.gflops > 0.25 and not r.feasible for r in over)
        (study,) = studies(ranged.folder)
        assert all(max(study.trials[r.trial].constraints.values()) > 0 for r in below + over)

    def test_the_range_is_kept_in_the_settings(self, ranged: Run) -> None:
        stored = StudySettings.load(ranged.folder / "settings.yaml")
        assert (stored.lowest_gflops, stored.budget_gflops) == (0.24, 0.25)
        assert "0.24-0.25gflops" in str(stored.study)
        context = prepare(tiny(ranged.folder, budget_gflops="0.24-0.25"), Callbacks())
        assert any("budgets 0.24 to 0.25" in line for line in describe(context))


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.3-0.2", "must be LOW-HIGH with LOW < HIGH, such as 1.1-1.4, but got 0.3-0.2"),
        ("0.2-", "budget_gflops must be a valid number"),
        ("0.2-0.3-0.4", "budget_gflops must be a valid number"),
        ("0.1-0.27", "--budget-gflops 0.1-0.27 is too low"),
    ],
)
def test_invalid_ranges_are_refused(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_study(tiny(tmp_path / "run", budget_gflops=given))
    assert not (tmp_path / "run").exists()


class TestOtherBudgets:
    @pytest.mark.slow
    def test_a_tighter_budget_and_back_need_no_training(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, front = pd.read_csv(run / "trials.csv"), (run / "front.csv").read_text()

        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("a trial ran")

        monkeypatch.setattr(Evaluator, "evaluate", never)
        tighter = run_study(tiny(run, **{**REJECTING, "budget_gflops": 0.23}))
        after = pd.read_csv(run / "trials.csv")
        columns = ["trial", "kind", "label", "gflops", "top1", "loss", "keep_ratios"]
        pd.testing.assert_frame_equal(after[columns], before[columns])
        assert (after.feasible == (after.gflops <= 0.23)).all()
        assert tighter.front
        assert all(record.gflops <= 0.23 for record in tighter.front)
        assert StudySettings.load(run / "settings.yaml").budget_gflops == 0.23
        (study,) = studies(run)
        for trial in study.trials:
            excess = after.set_index("trial").gflops[trial.number] - 0.23
            assert trial.constraints["GFLOPs over budget"] == pytest.approx(excess, abs=1e-9)
            assert trial.system_attrs["constraints"] == [trial.constraints["GFLOPs over budget"]]
        run_study(tiny(run, **REJECTING))
        assert (run / "front.csv").read_text() == front

    @pytest.mark.slow
    def test_a_looser_budget_runs_more_trials(self, run: Path) -> None:
        """Trials that were rejected then and are feasible now stay unknown."""
        before, number = pd.read_csv(run / "trials.csv"), REJECTING["trials"] + 2
        loose = float(before.gflops[before.state == "over budget"].min()) + 1e-6
        result = run_study(tiny(run, **{**REJECTING, "budget_gflops": loose, "trials": number}))
        after = pd.read_csv(run / "trials.csv")
        unknown = set(before.trial[(before.state == "over budget") & (before.gflops <= loose)])
        assert unknown
        assert unknown.isdisjoint(after.trial)
        assert len(after[(after.state == "scored") & (after.label != "plain")]) == number
        known = {r.trial: (r.gflops, r.top1) for r in result.trials if r.state == "scored"}
        assert all(known[t.trial] == (t.gflops, t.top1) for t in before[before.state == "scored"].itertuples())
        (study,) = studies(run)
        assert {study.trials[number].state for number in unknown} == {TrialState.FAIL}
        back = run_study(tiny(run, **{**REJECTING, "trials": number}))
        assert {r.state for r in back.trials if r.trial in unknown} == {"over budget"}
        assert unknown <= {r.trial for r in back.trials}

    @pytest.mark.slow
    def test_interrupted_while_trials_are_copied(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        number = len(studies(run)[0].trials)
        original, left = optuna.Study.add_trial, [3]

        def dies(self: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            original(self, trial)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(optuna.Study, "add_trial", dies)
            run_study(tiny(run, **{**REJECTING, "budget_gflops": 0.23}))
        assert len(studies(run)) == 2, "the whole one and half of the next"
        run_study(tiny(run, **{**REJECTING, "budget_gflops": 0.23}))
        (study,) = studies(run)
        assert len(study.trials) == number

    def test_another_kind_of_cost_is_refused(self, run: Path) -> None:
        before = (run / "settings.yaml").read_bytes()
        with pytest.raises(InputError, match=r"contains a study without a budget in ms, which may change its limit"):
            run_study(tiny(run, **REJECTING, budget_ms=9.0))
        assert (run / "settings.yaml").read_bytes() == before


class TestResumeFrom:
    def test_weights_and_front_come_from_the_earlier_study(self, rejecting: Path, tmp_path: Path) -> None:
        context = prepare(
            tiny(tmp_path / "run", resume_from=str(rejecting), budget_gflops=0.24, base_steps=None), Callbacks()
        )
        loaded = load_checkpoint(rejecting)
        assert loaded is not None
        own = context.evaluator.supernet.state_dict()
        assert all(torch.equal(own[name], value) for name, value in loaded[0].items())
        assert context.settings.base_steps == 0, "the same data need no second warm-up"
        assert context.prior is not None
        wanted = [r for r in context.prior.front if r.kind != "baseline"]
        first = [t for t in initial_trials(context, np.random.default_rng(0)) if t.label.startswith("trial ")]
        assert {t.label for t in first} <= {f"trial {r.trial} of {context.prior.settings.study}" for r in wanted}
        schedules = {context.space.schedule(t.indices) for t in first}
        assert schedules <= {r.schedule for r in wanted}
        assert schedules

    @pytest.mark.slow
    def test_a_whole_study_with_another_operator(self, rejecting: Path, tmp_path: Path) -> None:
        notes = Notes()
        result = run_study(
            tiny(tmp_path / "run", resume_from=str(rejecting), operator="tome", base_steps=None, trials=7), notes
        )
        assert result.front
        assert any("ignored, without a place in this network" in line for line in notes.lines)
        assert any(f"starts from the weights of {rejecting}" in line for line in notes.lines)
        assert any(r.label.endswith("digits") for r in result.trials), "its front is tried"

    def test_other_images_with_other_classes(self, rejecting: Path, tmp_path: Path) -> None:
        images = image_folder(tmp_path / "images", ("a", "b", "c"), per_class=12)
        context = prepare(tiny(tmp_path / "run", resume_from=str(rejecting), data_dir=str(images)), Callbacks())
        loaded = load_checkpoint(rejecting)
        assert loaded is not None
        own = context.evaluator.supernet.state_dict()
        kept = {name for name, value in own.items() if torch.equal(value, loaded[0][name])}
        assert own.keys() - kept == {"model.head.fc.weight", "model.head.fc.bias"}
        assert own["model.head.fc.weight"].shape[0] == 3

    @pytest.mark.parametrize(
        ("missing", "backbone", "message"),
        [
            ("settings.yaml", "mobilevit_xxs", "must be the run directory of a .* study, but .* has no settings.yaml"),
            ("supernet.safetensors", "mobilevit_xxs", "has no supernet.safetensors"),
            ("trials.csv", "mobilevit_xxs", "has no trials.csv"),
            ("front.csv", "vit_tiny_patch16_224", "must be a study of vit_tiny_patch16_224, but .* of mobilevit_xxs"),
        ],
    )
    def test_other_folders_are_refused(self, run: Path, missing: str, backbone: str, message: str) -> None:
        (run / missing).unlink()
        with pytest.raises(InputError, match=message):
            Prior.open(run, backbone=backbone)

    def test_one_start_at_a_time(self) -> None:
        with pytest.raises(InputError, match="checkpoint and resume_from cannot both be given"):
            tiny(Path("run"), resume_from="a", checkpoint="b")

    def test_schedules_are_moved_to_the_nearest_choices(self, rejecting: Path) -> None:
        space = prepare(tiny(rejecting, **REJECTING), Callbacks()).space
        for indices in space.random(np.random.default_rng(0), 20):
            assert nearest(space, space.schedule(indices)).tolist() == indices.tolist()
        first = space.layers[0]
        other = MergeSchedule(keep_ratios={first: 0.44}, operator="tome")
        choice = space.choices[0][nearest(space, other)[0]]
        distances = {abs(c.keep_ratio - 0.44) for c in space.choices[0] if c.keep_ratio < 1}
        assert abs(choice.keep_ratio - 0.44) == min(distances)
        assert not nearest(space, other)[1:].any(), "plain layers stay plain"


def test_initial_trials_have_every_form_and_cover_the_range(tmp_path: Path) -> None:
    given = {"budget_gflops": 0.26, "trials": 24, "space": SOFT_AND_HARD}
    context = prepare(tiny(tmp_path / "run", **given, sampler="tpe"), Callbacks())
    first = initial_trials(context, np.random.default_rng(0))
    baselines = [trial for trial in first if trial.kind == "baseline"]
    assert [trial.label.partition(" ")[0] for trial in baselines[:3]] == ["plain", "uniform", "uniform"]
    soft, hard = (context.space.schedule(trial.indices) for trial in baselines[1:3])
    assert soft.forms[context.space.layers[0]] == "soft"
    assert set(hard.forms.values()) == {"hard"}
    assert baselines[2].label.endswith(" hard")
    costs = [context.costs.gflops(context.space.schedule(trial.indices)) for trial in first]
    assert all(0.97 * 0.26 < cost <= 0.26 for cost in costs[1 : len(baselines)]), "fitted to the budget from below"
    covering = costs[len(baselines) :]
    assert len(covering) == 24 / 3
    width = max(covering) - min(covering)
    assert max(covering[:2]) - min(covering[:2]) > width / 3
    assert max(np.diff(sorted(covering[:4]))) < width / 2, "four of them leave no large gap"
    assert len({tuple(trial.indices) for trial in first}) == len(first)


def test_a_search_that_screens_begins_with_the_baselines_alone(tmp_path: Path) -> None:
    context = prepare(tiny(tmp_path / "run", **TINY_VIT), Callbacks())
    first = initial_trials(context, np.random.default_rng(0))
    assert {trial.kind for trial in first} == {"baseline"}
    costs = [context.budgets[0].costs(trial.indices[None])[0] for trial in first]
    assert all(cost <= 0.0044 for cost in costs[1:])


def test_baselines_stay_when_the_budget_changes(tmp_path: Path) -> None:
    """Or the space, whose choices they are, would be another; those over a new budget are not tried."""
    given = tiny(tmp_path / "run", **TINY_VIT)
    first = prepare(given, Callbacks())
    (tmp_path / "run").mkdir()
    first.settled.save(tmp_path / "run")
    second = prepare(tiny(tmp_path / "run", **TINY_VIT | {"budget_gflops": 0.0043}), Callbacks())
    assert second.settled.baselines == first.settled.baselines
    assert second.space.digest() == first.space.digest()
    labels = [trial.label for trial in initial_trials(second, np.random.default_rng(0))]
    assert set(labels) < {"plain", *(baseline.label for baseline in first.settled.baselines or [])}
