"""Studies of an operator whose cost depends on the image: measured, within budgets, and told with its spread."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import save_file
from support.command_line import Interrupt, Ltmsearch, Notes, tiny
from support.nets import randomise

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.costs import GIGA, Budget, sample_by_cost, traced_macs
from ltmsearch.engine.image_costs import COST_IMAGES
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.thresholds import thresholds_at
from ltmsearch.errors import InputError
from ltmsearch.models import count_tokens, create_backbone
from ltmsearch.models.supernet import Supernet
from ltmsearch.reporting.dashboard.notes import layer_tokens
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.description import describe
from ltmsearch.search.optuna_records import COSTS
from ltmsearch.search.run import Run
from ltmsearch.search.settled import Settled
from ltmsearch.search.setup import prepare

VIT = "vit_tiny_patch16_224"
NET: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
SIZES: dict[str, Any] = {"img_size": 64, "proxy_img_size": 64}
LIMIT = 0.0008
"""Of the plain network's 0.0011 GFLOPs."""
PLAIN = 16
"""Tokens of an image of 64 px."""
STUDY: dict[str, Any] = {
    "backbone": VIT, "model_kwargs": NET, **SIZES, "operator": "threshold", "budget_gflops": LIMIT, "trials": 7,
    "sampler": "random", "split_layer": "blocks.1", "base_steps": 1,
}  # fmt: skip
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, reason="")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with which the images keep different numbers of tokens."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    net = randomise(create_backbone(VIT, num_classes=10, img_size=64, **NET))
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    return path


def settings(run: Path, weights: Path, **changes: Any) -> Any:
    return tiny(run, **{**STUDY, "checkpoint": str(weights), **changes})


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        return run_study(settings(folder, weights))


def stored(run: Run) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run.folder / 'study.db'}")
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.mark.long
def test_final_costs_are_the_traced_means_of_the_images(finished: Run, weights: Path) -> None:
    context = prepare(settings(finished.folder, weights), Callbacks())
    checkpoint = load_checkpoint(finished.folder)
    assert checkpoint is not None
    assert context.measured is not None
    supernet = context.evaluator.supernet.eval()
    supernet.load_state_dict(checkpoint.weights)
    images = torch.cat(context.measured.images)
    assert len(images) == COST_IMAGES
    record = finished.front[-1]
    subnet = supernet.extract(record.schedule)
    macs = [traced_macs(subnet, (64, 64), image=image[None]) for image in images]
    assert record.gflops == pytest.approx(np.mean(macs) / GIGA)
    assert record.gflops_sd == pytest.approx(np.std(macs) / GIGA)
    kept = count_tokens(VIT, subnet, [images]).kept(PLAIN).mean(axis=0)
    left = PLAIN * np.cumprod([record.kept_share(layer) for layer in context.costs.layers])
    np.testing.assert_allclose(left, kept, rtol=1e-4)
    assert record.tokens_sent == pytest.approx(1 + kept[1], abs=1e-3), "with the class token"
    after = [layer.after for layer in layer_tokens(context.costs, record.schedule, record.kept_shares)]
    np.testing.assert_allclose(after, kept, rtol=1e-4)


def test_budgets_hold_for_the_mean(finished: Run) -> None:
    trained = [t for t in stored(finished) if t.state == TrialState.COMPLETE and t.user_attrs.get("label") != "plain"]
    assert len(trained) == 7
    assert all(trial.user_attrs[COSTS]["gflops"] <= LIMIT for trial in trained)
    assert all(trial.values[1] == trial.user_attrs[COSTS]["gflops"] for trial in trained)
    assert all(trial.values[2] == trial.user_attrs[COSTS]["tokens_sent"] for trial in trained)
    for record in finished.trials:
        assert record.feasible == (record.gflops <= LIMIT)
    assert all(record.gflops <= LIMIT for record in finished.front)
    (plain,) = [record for record in finished.trials if record.label == "plain"]
    assert (plain.gflops_sd, plain.feasible, plain.tokens_sent) == (0.0, False, 17)


def test_proposals_over_the_budget_are_not_trained(finished: Run) -> None:
    rejected = [trial for trial in stored(finished) if trial.state == TrialState.PRUNED]
    assert rejected, "the random sampler proposes some"
    for trial in rejected:
        assert trial.constraints["GFLOPs over budget"] == pytest.approx(trial.user_attrs[COSTS]["gflops"] - LIMIT)
        assert "supernet_version" not in trial.user_attrs
    assert {r.trial for r in finished.trials if r.state == "over budget"} == {trial.number for trial in rejected}


def test_start_up_trials_spread_over_the_range(finished: Run) -> None:
    start_up = [record.gflops for record in finished.trials if record.kind == "start-up"]
    assert start_up
    uniform = [record.label for record in finished.trials if record.kind == "baseline"]
    assert uniform[0] == "plain"
    assert all(label.startswith("uniform") for label in uniform[1:])
    assert 2 <= len(uniform) <= 3, "the costliest within the budget"


def test_files_tell_mean_and_spread(finished: Run, ltmsearch: Ltmsearch) -> None:
    front = pd.read_csv(finished.folder / "front.csv")
    assert (front.gflops_sd > 0).all()
    recipe = next((finished.folder / "recipes").glob("*.yaml")).read_text()
    assert "gflops_sd:" in recipe
    assert "operator: threshold" in recipe
    code, out, err = ltmsearch("front", str(finished.folder))
    assert code == 0, err
    assert "thresholds" in out
    assert "Thresholds, layer by layer in each stage: 1 = no merging" in " ".join(out.split())
    assert "GFLOPs, sd: mean and standard deviation over training images" in " ".join(out.split())
    code, out, _ = ltmsearch("front", str(finished.folder), "--json")
    assert json.loads(out)[0]["gflops_sd"] == front.gflops_sd[0]
    assert "Cells are the threshold of the layer" in (finished.folder / "report.html").read_text()


@pytest.mark.long
def test_an_interrupted_study_ends_alike(
    finished: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    given = settings(tmp_path / "run", weights)
    with pytest.raises(KeyboardInterrupt):
        run_study(given, Interrupt(after=9))
    resumed = run_study(given)
    tables = [pd.read_csv(run.folder / "trials.csv").drop(columns="seconds") for run in (finished, resumed)]
    pd.testing.assert_frame_equal(*tables)
    assert (resumed.folder / "front.csv").read_text() == (finished.folder / "front.csv").read_text()


def test_other_budgets_judge_the_measured_costs(
    finished: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    costs = sorted({record.gflops for record in finished.trials})
    limit = (costs[len(costs) // 2 - 1] + costs[len(costs) // 2]) / 2
    again = run_study(settings(folder, weights, budget_gflops=limit, study=finished.settings.study))
    assert {record.feasible for record in again.trials} == {True, False}
    assert all(record.feasible == (record.gflops <= limit) for record in again.trials)


def test_schedules_of_measured_cost_are_not_screened(weights: Path, tmp_path: Path) -> None:
    """Each cost takes a measurement, so the sampler auto is TPE, and baselines are not fitted."""
    context = prepare(settings(tmp_path / "run", weights, sampler="auto"), Callbacks())
    assert not context.screens
    assert any(line.startswith("sampler: tpe, since costs") for line in describe(context))
    assert context.settled.baselines is None
    drawn = context.draw_subnets(np.random.default_rng(0))
    assert len(drawn) == context.settings.sandwich_subnets


def test_a_quantile_bounds_the_share_of_the_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    run = run_study(settings(tmp_path / "run", weights, budget_quantile=0.9, trials=3, split_layer=None))
    assert run.settings.axis.name == "gflops_quantile"
    assert "that 0.9 of the images stay within" in run.settings.axis.title
    for record in run.trials:
        assert record.gflops_quantile is not None
        assert record.gflops_quantile >= record.gflops, "nine tenths cost at most more than the mean"
        assert record.feasible == (record.gflops_quantile <= LIMIT)
    assert all(t.values[1] == t.user_attrs[COSTS]["gflops_quantile"] for t in stored(run) if t.values)


def test_thresholds_are_measured_once(finished: Run, weights: Path) -> None:
    kept = Settled.load(finished.folder)
    assert kept is not None
    assert kept.thresholds is not None
    space = prepare(settings(finished.folder, weights), Callbacks()).space
    for layer, options in zip(space.layers, space.choices, strict=True):
        assert [choice.keep_ratio for choice in options] == [1.0, *kept.thresholds[layer]]
    assert len({tuple(values) for values in kept.thresholds.values()}) == 3, "each layer has its own"


def test_layers_together_keep_the_shares() -> None:
    torch.manual_seed(0)
    supernet = randomise(Supernet(VIT, operator="threshold", img_size=96, num_classes=5, **NET)).eval()
    assert isinstance(supernet, Supernet)
    images = torch.randn(12, 3, 96, 96) * torch.linspace(0.3, 2, 12)[:, None, None, None]
    first, _, third = supernet.layers
    found = thresholds_at(supernet, {first: (0.9, 0.7, 0.3), third: (0.8,)}, images, CPU)
    assert list(map(len, found.values())) == [3, 1]
    assert supernet.schedule == MergeSchedule.uniform(supernet.layers, 1.0, "threshold"), "restored"
    for share, threshold in zip((0.9, 0.7, 0.5), found[first], strict=True):
        with supernet.active(MergeSchedule(keep_ratios={first: threshold}, operator="threshold")):
            kept = count_tokens(VIT, supernet.model, [images]).kept(36)[:, -1]
        assert kept.mean() / 36 == pytest.approx(share, abs=0.01)
    both = MergeSchedule(keep_ratios={first: found[first][0], third: found[third][0]}, operator="threshold")
    with supernet.active(both):
        kept = count_tokens(VIT, supernet.model, images.split(5)).kept(36).mean(axis=0)
    assert kept[2] / kept[1] == pytest.approx(0.8, abs=0.01), "behind the merges of the first"


class _Falling:
    """Costs that fall with every step of every layer, counted in calls."""

    measured = True

    def __init__(self) -> None:
        self.asked: set[tuple[int, ...]] = set()

    def costs(self, indices: np.ndarray) -> np.ndarray:
        self.asked |= set(map(tuple, indices.tolist()))
        return 1000.0 - 40 * indices.sum(axis=1) - indices[:, 0]

    def reachable(self) -> tuple[float, float]:
        return 0.0, 1000.0


def test_start_up_draws_need_few_measurements() -> None:
    layers = tuple(f"blocks.{i}" for i in range(4))
    choices = (tuple(map(Choice, (1.0, 0.99, 0.98, 0.96, 0.9, 0.8))),) * 4
    space = SearchSpace(layers=layers, choices=choices, layer_tokens=(64,) * 4, operator="threshold")
    table = _Falling()
    budget = Budget(name="gflops", table=table, limit=700, per_unit=1.0)
    drawn = sample_by_cost(space, [budget], number=6, rng=np.random.default_rng(0))
    costs = table.costs(drawn)
    assert len(drawn) >= 4
    assert (costs <= 700).all()
    assert np.array_equal(costs, np.sort(costs)[::-1])
    assert costs.max() > 600, "near the budget"
    assert costs.min() < 350, "and far below"
    assert len(table.asked) <= 2 + 4 * 6
    none = Budget(name="gflops", table=table, limit=100, per_unit=1.0)
    assert sample_by_cost(space, [none], number=3, rng=np.random.default_rng(0)).shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": None}, "--operator threshold measures its thresholds with trained weights: give --pretrained"),
        ({"img_size": 70}, "--img-size must be a multiple of the patch size for --operator threshold, but got 70"),
        ({"budget_gflops": 0.0001}, "--budget-gflops 0.0001 is too low"),
        ({"backbone": "mobilevit_xxs", "model_kwargs": {}}, "the operator of mobilevit_xxs must keep equally many"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    weights: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {**STUDY, "checkpoint": str(weights), "split_layer": None, **changes}
    with pytest.raises(InputError) as caught:
        prepare(tiny(tmp_path / "run", **{name: value for name, value in given.items() if value is not None}), Notes())
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_budget_that_trained_weights_miss_is_refused_in_one_line(
    weights: Path, tmp_path: Path, ltmsearch: Ltmsearch
) -> None:
    """The lowest thresholds merge less than half: how much, only the images tell."""
    space = tmp_path / "space.yaml"
    space.write_text("schema_version: 1\nfamily: vit\nkeep_ratios: [1.0]\nthresholds: [0.999999]\n")
    options = {**STUDY, "checkpoint": weights, "space": space, "out": tmp_path / "run", "model_kwargs": None}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    small = ["--batch-size=4", "--sandwich-steps=0", "--calibration-images=8", "--search-images=8"]
    small += ["--rescore-images=8", "--report-images=8"]
    code, _, err = ltmsearch("run", *words, *small, "--model-kwargs", *(f"{k}={v}" for k, v in NET.items()))
    assert code == 2
    assert "is too low: with the shared weights as they are now, the lowest thresholds of the space reach 0.00" in err


def test_quantiles_need_costs_that_differ(ltmsearch: Ltmsearch) -> None:
    code, _, err = ltmsearch("run", "--backbone", VIT, "--budget-gflops", "1", "--budget-quantile", "0.9")
    assert code == 2
    assert "budget_quantile needs an operator whose cost depends on the image, such as threshold, but got ltm" in err
    assert err.count("\n") == 1
