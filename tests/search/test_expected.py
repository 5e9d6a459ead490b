"""Expected durations: from scripted rates, and measured without a trace."""

from pathlib import Path

import pytest
import torch
from support.command_line import Notes, tiny, tiny_vit
from support.sizes import TINY_VIT

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks, about
from ltmsearch.engine.steps import WarmUp
from ltmsearch.search import setup
from ltmsearch.search.expected import (
    RECORDING_SECONDS,
    WRITING_SECONDS,
    TrialRates,
    WarmUpRates,
    expected_seconds,
)
from ltmsearch.search.screening import scored_images
from ltmsearch.search.setup import prepare, warm_up_plan
from ltmsearch.search.timing import (
    OVERHEAD,
    RESCORING,
    SCORING,
    SCREENING,
    SET_UP,
    TRAINING,
    WARM_UP,
    WRITING,
    Times,
)
from ltmsearch.search.trial import EXAMPLES

RATES = TrialRates(step=2.0, image=0.1, first_image=0.3, saving=0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 1 s"),
        (12.4, "about 12 s"),
        (22.0, "about 20 s"),
        (88.0, "about 90 s"),
        (119.0, "about 2 minutes"),
        (1000.0, "about 17 minutes"),
        (9000.0, "about 2.5 hours"),
    ],
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_a_growing_warm_up_costs_by_its_pixels() -> None:
    plan = WarmUp(base_steps=8, base_img_size=64, sandwich_steps=3, lr=1e-3)
    sizes = [plan.img_size(step, 128) for step in range(8)]
    assert sizes[:5] == [64] * 5
    assert sizes[-1] > 64
    rates = WarmUpRates(first_step=1.0, base_step=4.0, sandwich_step=10.0)
    grown = sum(1.0 + 3.0 * (size**2 - 64**2) / (128**2 - 64**2) for size in sizes)
    assert rates.seconds(plan, 128, 0) == pytest.approx(grown + 30.0)
    assert rates.seconds(plan, 128, 4) == pytest.approx(grown - 4.0 + 30.0)
    assert rates.seconds(plan, 128, 9) == pytest.approx(20.0)


def test_parts_of_a_search(tmp_path: Path) -> None:
    settings = tiny_vit(tmp_path, trials=6, proxy_steps=3).resolved("cpu")
    assert expected_seconds(settings, RATES, trials=4, baselines=2) == pytest.approx(
        {
            TRAINING: 4 * 3 * 2.0,
            SCORING: (8 + 16) * (0.3 + 3 * 0.1) + 4 * EXAMPLES * 0.3,
            OVERHEAD: 4 * (RECORDING_SECONDS + 0.5),
            RESCORING: (8 + 24 + 24) * (0.3 + 4 * 0.1),
            WRITING: WRITING_SECONDS,
        }
    )


def test_a_time_limit_bounds_the_trials(tmp_path: Path) -> None:
    settings = tiny_vit(tmp_path, trials=50, timeout=60).resolved("cpu")
    parts = expected_seconds(settings, RATES, trials=50, baselines=2)
    assert parts[TRAINING] + parts[SCORING] == pytest.approx(60)
    rest = expected_seconds(settings, RATES, trials=0, baselines=2)
    assert rest[TRAINING] == rest[SCORING] == 0


def test_the_plain_network_is_scored_too(tmp_path: Path) -> None:
    settings = tiny_vit(tmp_path, trials=2, rescore_candidates=9).resolved("cpu")
    parts = expected_seconds(settings, RATES, trials=2, baselines=5)
    assert parts[SCORING] == pytest.approx((8 + 16) * (0.3 + 2 * 0.1) + 3 * EXAMPLES * 0.3)
    assert parts[RESCORING] == pytest.approx((8 + 24 + 24) * (0.3 + 2 * 0.1)), "there are no more networks"


def test_screening_is_expected_where_there_is_some(tmp_path: Path) -> None:
    context = prepare(tiny_vit(tmp_path, **TINY_VIT), Callbacks())
    expected = context.expected_seconds(first_step=None, trials=2, baselines=2)
    assert expected[SCREENING] == pytest.approx(scored_images(16, 2, 16) * context.trial_rates.image)
    assert SCREENING not in context.expected_seconds(first_step=None, trials=0, baselines=2)
    other = prepare(tiny_vit(tmp_path, **TINY_VIT, sampler="tpe"), Callbacks())
    assert SCREENING not in other.expected_seconds(first_step=None, trials=2, baselines=2)


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_measuring_leaves_no_trace(tmp_path: Path, objective: str) -> None:
    context = prepare(tiny_vit(tmp_path, **TINY_VIT | {"base_steps": 4, "objective": objective}), Callbacks())
    supernet = context.evaluator.supernet
    before, numbers = {n: v.clone() for n, v in supernet.state_dict().items()}, torch.get_rng_state()
    parts = context.expected_seconds(first_step=0, trials=2, baselines=2)
    assert all(seconds > 0 for seconds in parts.values())
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in supernet.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert warm_up_plan(context.settings).steps == 5


def test_the_announcement_counts_the_set_up_and_is_kept(tmp_path: Path) -> None:
    notes = Notes()
    run_study(tiny_vit(tmp_path, trials=1), notes)
    (stint,) = Times.load(tmp_path).stints
    assert stint.expected.keys() >= {SET_UP, WARM_UP, SCREENING, TRAINING, SCORING, OVERHEAD, RESCORING, WRITING}
    assert stint.expected[SET_UP] <= stint.seconds[SET_UP]
    (line,) = (line for line in notes.lines if line.startswith("expected to take"))
    total, set_up = about(sum(stint.expected.values())), about(stint.expected[SET_UP])
    assert stint.expected[WARM_UP] > 0
    assert line == f"expected to take {total}, {set_up} of it for the set-up, which is done"


@pytest.mark.long
def test_a_finished_study_is_neither_measured_nor_announced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "settle", None)
    monkeypatch.setattr(setup, "measure_trial", None)
    monkeypatch.setattr(setup, "measure_warm_up", None)
    notes = Notes()
    run_study(tiny(run), notes)
    assert not any("expected" in line for line in notes.lines)


@pytest.mark.long
def test_a_study_that_continues_announces_what_is_left(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "measure_warm_up", None)  # the warm-up is done
    run_study(tiny(run, trials=7))
    expected = Times.load(run).stints[-1].expected
    assert expected[OVERHEAD] < 2 * (RECORDING_SECONDS + 1)
