"""A warm-up that is stopped goes on where it was saved, and ends as if it had not been stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Interrupt, Notes, tiny_vit
from support.faults import fingerprint

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.search.setup import prepare
from ltmsearch.search.teacher import TEACHER
from ltmsearch.search.trial import parameters
from ltmsearch.search.warmup import PROGRESS, WarmUpRun

PLAN: dict[str, Any] = {"base_steps": 3, "sandwich_steps": 3, "sandwich_subnets": 2}
SLOW = pytest.mark.slow


def warming(folder: Path, **changes: Any) -> WarmUpRun:
    return WarmUpRun(prepare(tiny_vit(folder / "run", **PLAN | changes), Callbacks()), folder)


def assert_equal(one: WarmUpRun, other: WarmUpRun) -> None:
    """Equal weights, and teachers that predict the same."""
    first, second = (parameters(each.context.evaluator.supernet) for each in (one, other))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    first, second = (each.context.evaluator.teacher.predictions for each in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(rows, second[name]) for name, rows in first.items())


@pytest.mark.long
@pytest.mark.parametrize("stopped", [3, *(pytest.param(step, marks=SLOW) for step in (1, 5))])
def test_weights_and_losses_are_those_of_one_go(tmp_path: Path, stopped: int) -> None:
    whole = warming(tmp_path)
    losses = list(whole.steps())
    first = warming(tmp_path)
    for _ in zip(range(stopped), first.steps(), strict=False):
        pass
    first.save()
    second = warming(tmp_path)
    assert second.resume() == stopped
    assert list(second.steps()) == losses[stopped:]
    assert_equal(whole, second)
    second.remove()
    assert second.resume() == 0


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> WarmUpRun:
    """A finished warm-up with a teacher."""
    whole = warming(tmp_path_factory.mktemp("taught"), objective="kl")
    whole.run(Callbacks(), lambda: None)
    return whole


# Before the base steps are done, just when they are, one step later, and after all.
@pytest.mark.parametrize("stopped", [4, *(pytest.param(step, marks=SLOW) for step in (2, 3, 6))])
def test_a_stopped_warm_up_has_the_same_teacher(taught: WarmUpRun, tmp_path: Path, stopped: int) -> None:
    first = warming(tmp_path, objective="kl")
    for _ in zip(range(stopped), first.steps(), strict=False):
        pass
    first.save()
    second = warming(tmp_path, objective="kl")
    assert second.resume() == stopped
    second.run(Callbacks(), lambda: None)
    assert_equal(taught, second)
    assert (tmp_path / TEACHER).read_bytes() == (taught.folder / TEACHER).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_a_run_that_is_stopped_in_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    monkeypatch.setattr("ltmsearch.search.warmup.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("ltmsearch.search.warmup.SAVING_SHARE", 1e9)
    notes, changes = Notes(), {**PLAN, "trials": 2, "objective": objective}
    run_study(tiny_vit(tmp_path / "whole", **changes))
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_vit(tmp_path / "run", **changes), Interrupt(5))
    assert (tmp_path / "run" / PROGRESS).exists()
    run_study(tiny_vit(tmp_path / "run", **changes), notes)
    assert any(line.startswith("continuing the warm-up after step ") for line in notes.lines)
    assert not (tmp_path / "run" / PROGRESS).exists()
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "run")


def test_files_of_other_studies_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    begun = warming(tmp_path)
    begun.save()
    with pytest.raises(InputError, match="must be the warm-up of this study, but is of another study; move it away"):
        warming(tmp_path, base_steps=4).resume()
    (tmp_path / PROGRESS).write_bytes(damaged := (tmp_path / PROGRESS).read_bytes()[:-9])
    with pytest.raises(InputError, match="must be the state of an ltmsearch training"):
        begun.resume()
    assert (tmp_path / PROGRESS).read_bytes() == damaged
