"""A study with tokens sent as its third objective, from the options to the front."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pandas as pd
import pytest
from support.command_line import Interrupt, call, tiny, tiny_options, tiny_study
from support.records import read_equal_columns

from ltmsearch import run_study
from ltmsearch.config.names import Sampler
from ltmsearch.config.recipe import load_recipe
from ltmsearch.errors import InputError
from ltmsearch.export.subnets import choose_trials
from ltmsearch.reporting.json_summary import study_document
from ltmsearch.search.driver import Driver
from ltmsearch.search.optuna_records import DASHBOARD_CONSTRAINTS
from ltmsearch.search.proposals import SCREENED
from ltmsearch.search.records import TrialRecord, select_front
from ltmsearch.search.run import Run
from ltmsearch.search.samplers import make_sampler

SPLIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "model_kwargs": {"depth": 4, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "reg_tokens": 2},
    "img_size": 64,
    "budget_gflops": 0.0044,
    "split_layer": "blocks.1",
    "sampler": "tpe",
    "trials": 8,
    "rescore_candidates": 6,
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("split"), **SPLIT)


@pytest.fixture
def run(split: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(split, tmp_path / "run"))


def study_in(run: Path) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def by_hand(record: TrialRecord) -> int:
    """64 tokens, of which the first two blocks keep shares or remove numbers, a class token and two registers."""
    kept = 64
    for layer in ("blocks.0", "blocks.1"):
        ratio = record.schedule.keep_ratios[layer]
        kept = int(kept * ratio + 0.5) if ratio > 0 else kept - min(int(-ratio), kept // 2)
    return kept + 3


def test_tokens_are_counted_stored_and_optimised(split: Path) -> None:
    study, records = study_in(split), Run.open(split).trials
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE] * 3
    assert study.metric_names == ["cross-entropy (nats)", "GFLOPs", "tokens sent"]
    assert SCREENED not in study.user_attrs, "TPE screens nothing"
    assert [record.tokens_sent for record in records] == [by_hand(record) for record in records]
    assert len({record.tokens_sent for record in records}) > 3
    for record in records:
        trial = study.trials[record.trial]
        assert trial.user_attrs["tokens_sent"] == record.tokens_sent
        assert len(trial.system_attrs[DASHBOARD_CONSTRAINTS]) == 1, "tokens have no budget"
        if record.state == "scored":
            assert trial.values == [record.loss, record.gflops, record.tokens_sent]


def test_front_is_the_brute_force_one(split: Path) -> None:
    run = Run.open(split)
    candidates = [r for r in run.trials if r.feasible and r.rescored_loss is not None]
    places = {r.trial: np.array([r.rescored_loss, r.gflops, r.tokens_sent]) for r in candidates}

    def beaten(own: np.ndarray) -> bool:
        return any((other <= own).all() and (other < own).any() for other in places.values())

    expected = {number for number, place in places.items() if not beaten(place)}
    assert {record.trial for record in run.front} == expected
    assert [r.rescored_loss for r in run.front] == sorted(r.rescored_loss or 0.0 for r in run.front)
    table = pd.read_csv(split / "front.csv")
    assert table.trial.tolist() == [record.trial for record in run.front]
    assert table.tokens_sent.tolist() == [record.tokens_sent for record in run.front]
    assert {path.name for path in split.iterdir()} >= {"front.html", "front_tokens.html", "report.html"}
    document = study_document(run)
    assert [row["tokens_sent"] for row in document["front"]] == [record.tokens_sent for record in run.front]
    assert document["baselines"][0]["tokens_sent"] == 67
    findings = json.loads((split / "findings.json").read_text())
    by_cost = {record.trial for record in select_front(run.front, replace(run.settings.axis, second=None))}
    assert set(findings["on_front_by_tokens_sent"]) == expected - by_cost
    limit = sorted(record.gflops for record in run.front)[len(run.front) // 2]
    (chosen,) = choose_trials(run.trials, under_gflops=limit, axis=run.settings.axis)
    assert chosen.rescored_loss == min(r.rescored_loss or 0.0 for r in run.front if r.gflops <= limit)


def test_recipes_tell_the_tokens_and_the_layer(split: Path) -> None:
    for record in Run.open(split).front:
        origin = load_recipe(split / "recipes" / f"{record.trial}.yaml").provenance
        assert (origin["split_layer"], origin["tokens_sent"]) == ("blocks.1", record.tokens_sent)


@pytest.mark.long
def test_an_interrupted_study_ends_with_the_same_trials(split: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "run", **SPLIT), Interrupt(after=14))
    assert 2 < len(Run.open(tmp_path / "run").trials) < len(Run.open(split).trials)
    run_study(tiny(tmp_path / "run", **SPLIT))
    pd.testing.assert_frame_equal(read_equal_columns(tmp_path / "run"), read_equal_columns(split))
    assert (tmp_path / "run/front.csv").read_bytes() == (split / "front.csv").read_bytes()


@pytest.mark.long
def test_killed_between_weights_and_study(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights hold the outcome of the trial that the study lacks, with all three values."""
    original, left = Driver._store, [4]

    def dies(self: Driver, trial: optuna.Trial, outcome: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        original(self, trial, outcome)

    monkeypatch.setattr(Driver, "_store", dies)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "run", **SPLIT))
    monkeypatch.setattr(Driver, "_store", original)
    run_study(tiny(tmp_path / "run", **SPLIT))
    pd.testing.assert_frame_equal(read_equal_columns(tmp_path / "run"), read_equal_columns(split))


@pytest.mark.parametrize("other", ["blocks.2", None])
def test_another_split_layer_does_not_continue_the_study(run: Path, other: str | None) -> None:
    before = (run / "trials.csv").read_bytes()
    with pytest.raises(InputError, match=f"split_layer was 'blocks.1' and is now {other!r}"):
        run_study(tiny(run, **SPLIT | {"split_layer": other, "trials": 9}))
    assert (run / "trials.csv").read_bytes() == before


def test_other_budgets_keep_the_three_objectives(run: Path) -> None:
    result = run_study(tiny(run, **SPLIT | {"budget_gflops": 0.0042}))
    assert result.front
    assert all(record.gflops <= 0.0042 for record in result.front)
    assert len(study_in(run).directions) == 3


@pytest.mark.long
def test_screening_serves_three_objectives(tmp_path: Path) -> None:
    run = Run.open(tiny_study(tmp_path, **SPLIT | {"sampler": "auto", "objective": "kl"}))
    study = study_in(run.folder)
    assert study.metric_names == ["KL divergence from the plain network (nats)", "GFLOPs", "tokens sent"]
    assert [t.values for t in study.trials] == [[r.kl, r.gflops, r.tokens_sent] for r in run.trials]
    (screened,) = study.user_attrs[SCREENED]
    assert len(screened["promoted"]) == sum(record.kind == "searched" for record in run.trials) > 0


@pytest.mark.long
@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_samplers_take_three_objectives_and_a_constraint(sampler: Sampler) -> None:
    """Rejected trials included, whose values nobody knows."""
    study = optuna.create_study(directions=["minimize"] * 3)
    for number in range(26):
        study.sampler = make_sampler(sampler, seed=number)
        trial = study.ask()
        kept = [trial.suggest_int(f"blocks.{i}", 0, 4) for i in range(4)]
        cost = float(sum(kept))
        trial.set_constraint("over budget", cost - 12)
        if cost > 12:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, [-(cost**0.5) - kept[0], cost, float(kept[0] + kept[1])])
    scored = [t for t in study.trials if t.values]
    assert len(scored) > 10
    assert all(len(trial.params) == 4 for trial in study.trials)


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "layer", "message"),
    [
        ("vit_tiny_patch16_224", "blocks.4", "error: unknown --split-layer 'blocks.4': did you mean"),
        (
            "mobilevit_xxs",
            "stages.2.1.transformer.0",
            "error: --split-layer must be a layer whose merges are not undone",
        ),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backbone: str,
    layer: str,
    message: str,
) -> None:
    given = {"backbone": backbone, "split_layer": layer, "out": tmp_path / "run"}
    if backbone != "mobilevit_xxs":
        given |= {"img_size": 64, "budget_gflops": 0.0044}
    options = [*tiny_options(**given)]
    if backbone != "mobilevit_xxs":
        options += [f"--model-kwargs={name}={value}" for name, value in SPLIT["model_kwargs"].items()]
    code, _, err = call("run", *options, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
