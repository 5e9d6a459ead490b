"""Trials that other programs add to a study, queue or end: they neither count nor stop the search."""

from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial
from support.command_line import Notes, tiny

from ltmsearch import run_study
from ltmsearch.search.trial import IB_WEIGHT

LAYER = "stages.2.1.transformer.1"


def study_of(run: Path) -> optuna.Study:
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.long
def test_queued_trials_outside_the_space_are_left_out(run: Path) -> None:
    study = study_of(run)
    before = study.trials
    values: list[dict[str, float]] = [{LAYER: 99}, {LAYER: -1}, {IB_WEIGHT: 50.0}, {}]
    for changed in values:
        study.enqueue_trial(before[2].params | changed)
    notes, first = Notes(), len(before)
    options = before[2].distributions[LAYER]
    assert isinstance(options, IntDistribution)
    most = options.high
    result = run_study(tiny(run, trials=7), notes)
    for number, reason in enumerate(
        (
            f"{LAYER} must be in 0 to {most}, but is 99",
            f"{LAYER} must be in 0 to {most}, but is -1",
            f"{IB_WEIGHT} must be in 0.00316228 to 1, but is 50",
        ),
        start=first,
    ):
        assert f"trial {number}, which another program has queued, is left out: {reason}" in notes.lines
        assert study.get_trials()[number].state == TrialState.FAIL
    assert [r.trial for r in result.trials] == [*range(first), first + 3]
    assert pd.read_csv(run / "trials.csv").trial.tolist() == [*range(first), first + 3]
    assert result.trials[-1].schedule == result.trials[2].schedule, "the one within the space is searched"


@pytest.mark.long
@pytest.mark.parametrize("budget", [{}, pytest.param({"budget_gflops": 0.26}, marks=pytest.mark.slow)])
def test_trials_that_others_have_ended_do_not_count(run: Path, budget: dict[str, float]) -> None:
    """Also where the study is copied, as its budget has changed."""
    study, notes = study_of(run), Notes()
    before = study.trials
    study.add_trial(create_trial(values=[99.0, 0.1]))
    study.add_trial(create_trial(values=[99.0, 0.1], params=before[1].params, distributions=before[1].distributions))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.tell(study.ask(before[1].distributions), [99.0, 0.1])
    result = run_study(tiny(run, trials=7, **budget), notes)
    assert [r.trial for r in result.trials] == [*range(len(before)), len(before) + 5]
    assert all(r.top1 != 99.0 for r in result.trials)
    assert not any("shared weights contain" in line for line in notes.lines), "they match the search's own trials"
