"""The study: reproducible, interruptible at any moment, and honest about budgets."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pandas as pd
import pytest
import timm
import torch
from optuna.trial import TrialState
from support.command_line import Interrupt
from support.sizes import TINY, TINY_VIT

from ltmsearch import StudySettings, load_recipe, run_study
from ltmsearch.config.names import Sampler
from ltmsearch.costs import traced_macs
from ltmsearch.errors import InputError, TrialDiverged
from ltmsearch.io.presets import find_file
from ltmsearch.reporting.examples import EXAMPLES, read_examples
from ltmsearch.reporting.recipes import make_recipe
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.driver import Driver
from ltmsearch.search.run import Run
from ltmsearch.search.samplers import make_sampler
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.tally import MAX_REJECTED
from ltmsearch.search.trial import Evaluator, TrialResult
from ltmsearch.training.validation import validate_recipe

TRIALS = 8
"""The baselines and a few that are searched."""


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG starts a browser; its own tests do that."""
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


VIT = {name: value for name, value in TINY_VIT.items() if name != "trials"}
"""Where the network does not matter: a third of the time."""


def tiny(folder: Path, **changes: Any) -> StudySettings:
    return StudySettings.make("test", **{**TINY, "trials": TRIALS, "out": str(folder / "run"), **changes})


def outcome(folder: Path) -> tuple[pd.DataFrame, str]:
    """What must be the same in equal studies: everything but wall times."""
    return pd.read_csv(folder / "run/trials.csv").drop(columns="seconds"), (folder / "run/front.csv").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished study, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        run_study(tiny(folder))
    return folder


def assert_same(one: Path, other: Path) -> None:
    (trials, front), (other_trials, other_front) = outcome(one), outcome(other)
    pd.testing.assert_frame_equal(trials, other_trials)
    assert front == other_front
    weights, other_weights = load_checkpoint(one / "run"), load_checkpoint(other / "run")
    assert weights is not None
    assert other_weights is not None
    assert weights[1] != other_weights[1] or all(torch.equal(v, other_weights[0][n]) for n, v in weights[0].items())


class TestFinishedStudy:
    def test_files(self, finished: Path) -> None:
        run = finished / "run"
        names = {path.name for path in run.iterdir()}
        assert {
            "settings.yaml", "study.db", "supernet.safetensors", "supernet.json", "trials.csv", "front.csv",
            "front.html", "layers.html", "findings.json", "recipes", "report.html", "times.json", "answers.csv",
            "baselines.csv", "examples.json",
        } <= names  # fmt: skip
        assert not [path for path in run.rglob("*") if path.name.startswith(".")]

    def test_front_is_within_the_budget_and_ordered(self, finished: Path) -> None:
        front = pd.read_csv(finished / "run/front.csv")
        assert len(front) >= 1
        assert (front.gflops <= 0.27).all()
        assert front.rescored_loss.is_monotonic_increasing
        assert front.gflops.is_monotonic_decreasing

    def test_curves_of_baselines_are_scored_on_the_reported_images(self, finished: Path) -> None:
        """Around the budget, cheaper than the plain network; a baseline that is a trial has that trial's scores."""
        run = Run.open(finished / "run")
        curves = {point.label: point for point in run.curves}
        ratios = [point for point in run.curves if point.curve == "one ratio"]
        assert [point.gflops < 0.27 for point in ratios] == [True, True, False], "below, at and above the budget"
        plain = next(record for record in run.trials if record.is_plain)
        assert all(point.gflops < plain.gflops for point in curves.values())
        trials = {record.label: record for record in run.trials}
        known = {label for label, point in curves.items() if point.trial is not None}
        assert known
        assert known < set(curves)
        for label in known:
            record, point = trials[label], curves[label]
            assert (record.trial, record.gflops) == (point.trial, point.gflops)
            assert (record.report_top1, record.difference) == (point.report_top1, point.difference)
        assert not {label for label in curves if label not in known} & set(trials)

    def test_examples_are_of_the_answers(self, finished: Path) -> None:
        run, examples = Run.open(finished / "run"), read_examples(finished / "run" / EXAMPLES)
        assert examples is not None
        assert run.answers is not None
        names = [str(n) for n in range(10)]
        assert len(examples.examples) >= 3
        for each in examples.examples:
            at = each.image
            found = (run.answers.labels[at], run.answers.plain[at], run.answers.trials[examples.trial][at])
            assert (each.label, each.plain, each.merged) == tuple(names[n] for n in found)
            assert len(each.pictures) >= 2
        changed = [each.plain != each.merged for each in examples.examples]
        assert changed == sorted(changed, reverse=True), "changed answers come first"

    def test_recipes_build_the_nets_they_name_at_the_cost_they_name(self, finished: Path) -> None:
        front = pd.read_csv(finished / "run/front.csv")
        recipes = sorted((finished / "run/recipes").glob("*.yaml"))
        assert {int(path.stem) for path in recipes} == set(front.trial)
        for _, row in front.iterrows():
            recipe = load_recipe(finished / f"run/recipes/{row.trial}.yaml")
            assert recipe.schedule.keep_ratios == json.loads(row.keep_ratios)
            assert recipe.ib_weight == row.ib_weight
            assert recipe.ib_beta == 1.0
            model = timm.create_model(recipe.model, **recipe.model_kwargs())
            assert traced_macs(model, (recipe.img_size,) * 2) / 1e9 == row.gflops

    def test_every_scored_trial_but_the_reference_moved_the_weights(self, finished: Path) -> None:
        trials = pd.read_csv(finished / "run/trials.csv")
        scored = trials[trials.state == "scored"]
        trained = scored[scored.label != "plain"]
        assert len(trained) == TRIALS
        assert trained.supernet_version.tolist() == list(range(TRIALS))
        loaded = load_checkpoint(finished / "run")
        assert loaded is not None
        assert loaded[1].version == TRIALS

    def test_first_trials_are_different_nets(self, finished: Path) -> None:
        trials = pd.read_csv(finished / "run/trials.csv")
        first = trials[trials.kind != "searched"]
        assert len(first) >= 4
        # Equal costs would mean equal grids here: no two different schedules of the space cost the same by chance.
        assert first.gflops.is_unique

    def test_baselines_come_first_and_the_plain_net_is_a_reference(self, finished: Path) -> None:
        trials = pd.read_csv(finished / "run/trials.csv")
        assert trials.label[0] == "plain"
        assert not trials.feasible[0]
        assert trials.state[0] == "scored"
        assert trials.label.str.startswith("uniform").sum() >= 1
        assert trials[["rescored_loss", "report_top1"]][trials.kind == "baseline"].notna().all(axis=None)

    def test_agreement_is_with_the_plain_network(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Known where trials were rescored, the same in `front.csv`, and the same as `ltmsearch validate` finds."""
        run, front = Run.open(finished / "run"), pd.read_csv(finished / "run/front.csv").set_index("trial")
        known = [record for record in run.trials if record.agreement is not None]
        assert known == [record for record in run.trials if record.report_top1 is not None]
        assert (known[0].label, known[0].agreement, known[0].agreement_se) == ("plain", 100.0, 0.0)
        assert {r.trial: (r.agreement, r.agreement_se) for r in run.front} == {
            number: (row.agreement, row.agreement_se) for number, row in front.iterrows()
        }
        monkeypatch.setattr("ltmsearch.training.validation.STATISTICS_IMAGES", run.settings.calibration_images)
        full_size = [record for record in known if record.schedule.img_size is None]
        lowest = min(full_size, key=lambda record: record.agreement or 0.0)
        validated = validate_recipe(
            make_recipe(lowest, run.settings, num_classes=10),
            checkpoint=finished / "run/supernet.safetensors",
            img_size=run.settings.proxy_img_size,
            batch_size=run.settings.scoring_batch_size,
            device="cpu",
            precision="fp32",
            split="test",
            val_images=run.settings.report_images,
        )
        assert (validated.agreement, validated.top1) == pytest.approx((lowest.agreement, lowest.report_top1))

    def test_reported_scores_follow_from_the_answers(self, finished: Path) -> None:
        run = Run.open(finished / "run")
        assert run.answers is not None
        final = [record for record in run.trials if record.report_top1 is not None]
        assert run.answers.trials.keys() == {record.trial for record in final}
        assert len(run.answers.labels) == run.settings.report_images
        assert np.array_equal(run.answers.plain, run.answers.trials[0]), "trial 0 is the plain network"
        for record in final:
            difference = run.answers.difference(record.trial)
            assert (record.difference, record.difference_se) == (difference.value, difference.se)
            assert record.report_top1 == run.answers.top1(record.trial).value
            assert record.rescored_version == TRIALS

    def test_only_baselines_train_without_ib_loss(self, finished: Path) -> None:
        trials = pd.read_csv(finished / "run/trials.csv")
        assert (trials.ib_weight[trials.kind == "baseline"] == 0).all()
        others = trials.ib_weight[trials.kind != "baseline"]
        assert len(others) >= 2
        assert others[others > 0].is_unique, "drawn for each trial"
        assert ((others == 0) | others.between(0.01, 1.0)).all()
        stored = optuna.load_study(study_name=None, storage=f"sqlite:///{finished}/run/study.db").trials
        assert [trial.user_attrs["ib_weight"] for trial in stored] == trials.ib_weight.tolist()
        assert all("ib_weight" in trial.params for trial in stored)

    def test_information_terms_of_every_scored_trial_are_kept(self, finished: Path) -> None:
        trials = pd.read_csv(finished / "run/trials.csv")
        scored = trials[trials.state == "scored"]
        assert scored[["mi_x", "mi_y", "ibb"]].notna().all(axis=None)
        assert (scored.mi_x >= 0).all()
        assert (scored.mi_y > 0).all()
        assert scored.mi_y.is_unique

    def test_optuna_and_dashboard_read_the_constraints(self, finished: Path) -> None:
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{finished}/run/study.db")
        for trial in study.trials:
            excess = trial.values[1] - 0.27 if trial.values else None
            assert trial.constraints["GFLOPs over budget"] == pytest.approx(trial.system_attrs["constraints"][0])
            if excess is not None:
                assert trial.constraints["GFLOPs over budget"] == pytest.approx(excess)
        assert study.metric_names == ["cross-entropy (nats)", "GFLOPs"]
        assert study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2
        values = [trial.values for trial in study.trials]
        assert values == [[record.loss, record.gflops] for record in Run.open(finished / "run").trials]
        assert {t.number for t in study.best_trials} <= {
            t.number for t in study.trials if t.values and t.values[1] <= 0.27
        }

    @pytest.mark.long
    def test_same_command_again_changes_nothing(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = outcome(finished)
        monkeypatch.setattr(Evaluator, "evaluate", _must_not_be_called)
        monkeypatch.setattr(Evaluator, "score", _must_not_be_called)
        run_study(tiny(finished))
        pd.testing.assert_frame_equal(outcome(finished)[0], before[0])
        assert outcome(finished)[1] == before[1]


def _must_not_be_called(*_: object, **__: object) -> TrialResult:
    raise AssertionError("nothing was left to do")


@pytest.mark.long
def test_the_seed_determines_the_study(finished: Path, tmp_path: Path) -> None:
    run_study(tiny(tmp_path / "a"))
    assert_same(finished, tmp_path / "a")
    run_study(tiny(tmp_path / "b", seed=1))
    assert not outcome(tmp_path / "b")[0].equals(outcome(finished)[0])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("after", [9, *(pytest.param(after, marks=SLOW) for after in (2, 6, 12))])
def test_interrupted_studies_end_the_same(finished: Path, tmp_path: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path), Interrupt(after))
    run_study(tiny(tmp_path))
    assert_same(finished, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "name", "call"),
    [
        pytest.param(SharedWeights, "save", 5, id="before saving the weights", marks=SLOW),
        pytest.param(Driver, "_store", 4, id="between saving and storing"),
        pytest.param(optuna.Trial, "suggest_int", 60, id="while suggesting", marks=SLOW),
        pytest.param(optuna.Trial, "suggest_float", 7, id="before suggesting the IB weight", marks=SLOW),
    ],
)
def test_a_crash_loses_and_repeats_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, call: int
) -> None:
    original, calls = getattr(target, name), [0]

    def crash_once(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise RuntimeError("power cut")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, crash_once)
        with pytest.raises(RuntimeError, match="power cut"):
            run_study(tiny(tmp_path))
    run_study(tiny(tmp_path))
    assert_same(finished, tmp_path)


@pytest.mark.slow
def test_more_trials_continue_the_study(finished: Path, tmp_path: Path) -> None:
    run_study(tiny(tmp_path, trials=4))
    first = outcome(tmp_path)[0]
    with pytest.raises(InputError, match="seed was 0 and is now 3; proxy_steps was 1 and is now 2"):
        run_study(tiny(tmp_path, seed=3, proxy_steps=2))
    pd.testing.assert_frame_equal(outcome(tmp_path)[0], first)
    run_study(tiny(tmp_path, trials=5))
    longer = outcome(tmp_path)[0]
    columns = ["trial", "kind", "label", "state", "gflops", "top1", "loss", "supernet_version", "keep_ratios"]
    pd.testing.assert_frame_equal(longer[columns].head(len(first)), first[columns])
    assert (longer.state == "scored").sum() == (first.state == "scored").sum() + 1


@pytest.mark.slow
def test_proposals_over_budget_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[float] = []
    original = Evaluator.evaluate

    def spy(self: Evaluator, *args: Any, **kwargs: Any) -> TrialResult:
        evaluated.append(kwargs["steps"] if kwargs["steps"] is not None else self.settings.proxy_steps)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "evaluate", spy)
    result = run_study(tiny(tmp_path, sampler="random", budget_gflops=0.23, trials=8))
    rejected = [record for record in result.trials if record.state == "over budget"]
    assert rejected, "a random sampler proposes schedules over a tight budget"
    assert all(record.gflops > 0.23 and record.top1 is None for record in rejected)
    assert sum(evaluated) == 8  # one step each; the reference has none
    assert len(evaluated) == 9


@pytest.mark.long
def test_a_diverging_trial_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls, seen = Evaluator.evaluate, [0], []

    def diverge_once(self: Evaluator, weights: Any, *args: Any, **kwargs: Any) -> TrialResult:
        calls[0] += 1
        seen.append({name: value.clone() for name, value in weights.items()})
        if calls[0] == 3:
            next(iter(self.supernet.parameters())).data.fill_(float("nan"))  # what a real divergence leaves behind
            raise TrialDiverged("the proxy training diverged")
        return original(self, weights, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "evaluate", diverge_once)
    result = run_study(tiny(tmp_path, **TINY_VIT))
    assert [record.state for record in result.trials].count("failed") == 1
    assert len(result.front) >= 1
    assert all(torch.equal(seen[2][name], value) for name, value in seen[3].items())


@pytest.mark.parametrize("operator", ["tome", pytest.param("pool", marks=SLOW)])
def test_baseline_operators_are_searched(tmp_path: Path, operator: str) -> None:
    result = run_study(tiny(tmp_path, **TINY_VIT | {"trials": 3}, operator=operator))
    assert load_recipe(tmp_path / f"run/recipes/{result.front[0].trial}.yaml").schedule.operator == operator


@pytest.mark.slow
def test_the_time_limit_still_writes_results(tmp_path: Path) -> None:
    result = run_study(tiny(tmp_path, **VIT, trials=500, timeout=0.001))
    assert result.trials == []
    assert (tmp_path / "run/front.csv").read_text().startswith("trial,gflops")
    continued = run_study(tiny(tmp_path, **VIT, trials=2))
    assert sum(record.state == "scored" for record in continued.trials) >= 2


class Stubborn(optuna.samplers.RandomSampler):
    """Proposes one net, which is over the budget, and nothing else."""

    def sample_independent(self, _study: Any, _trial: Any, name: str, distribution: Any) -> Any:
        return distribution.low + (name == "stages.2.1.transformer.0")


@pytest.mark.slow
def test_a_stuck_sampler_does_not_stall_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.search.driver.make_sampler", lambda *_, **__: Stubborn())
    result = run_study(tiny(tmp_path / "a", trials=12, sampler="random"))
    assert sum(record.state == "scored" and record.label != "plain" for record in result.trials) == 12
    assert any(record.label == "drawn within budget" for record in result.trials)
    # Interrupted in a row of rejected proposals, the study draws at the same place.
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "b", trials=12, sampler="random"), Interrupt(30))
    interrupted = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/b/run/study.db").trials
    assert 0 < sum(trial.state == TrialState.PRUNED for trial in interrupted) < MAX_REJECTED
    run_study(tiny(tmp_path / "b", trials=12, sampler="random"))
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.long
def test_a_space_without_ib_weights(tmp_path: Path) -> None:
    lines = find_file("search_spaces", "vit").read_text().splitlines(keepends=True)
    space = tmp_path / "space.yaml"
    space.write_text("".join(line for line in lines if not line.startswith("ib_weight")))
    result = run_study(tiny(tmp_path, **TINY_VIT, space=str(space)))
    assert {record.ib_weight for record in result.trials} == {0.0}
    assert all(record.mi_y is not None for record in result.trials if record.state == "scored")
    assert load_recipe(tmp_path / f"run/recipes/{result.front[0].trial}.yaml").ib_weight == 0.0
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/run/study.db").trials
    assert not any("ib_weight" in trial.params for trial in stored)


@pytest.mark.parametrize("name", get_args(Sampler))
def test_samplers_by_name(name: Sampler) -> None:
    assert isinstance(make_sampler(name, seed=1), optuna.samplers.BaseSampler)
