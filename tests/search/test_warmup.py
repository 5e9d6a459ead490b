"""A warm-up that is stopped goes on where it was saved, and ends as if it had not been stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Interrupt, Notes, tiny
from support.faults import fingerprint

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import parameters
from ltmsearch.search.warmup import PROGRESS, WarmUpRun

PLAN: dict[str, Any] = {"base_steps": 3, "sandwich_steps": 3, "sandwich_subnets": 2}


@pytest.mark.parametrize("stopped", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 5))])
def test_weights_and_losses_are_those_of_one_go(tmp_path: Path, stopped: int) -> None:
    whole = WarmUpRun(prepare(tiny(tmp_path / "run", **PLAN), Callbacks()), tmp_path)
    losses = list(whole.steps())
    first = WarmUpRun(prepare(tiny(tmp_path / "run", **PLAN), Callbacks()), tmp_path)
    for _ in zip(range(stopped), first.steps(), strict=False):
        pass
    first.save()
    second = WarmUpRun(prepare(tiny(tmp_path / "run", **PLAN), Callbacks()), tmp_path)
    assert second.resume() == stopped
    assert list(second.steps()) == losses[stopped:]
    one, other = (parameters(each.context.evaluator.supernet) for each in (whole, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    second.remove()
    assert second.resume() == 0


@pytest.mark.slow
def test_a_run_that_is_stopped_in_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.search.warmup.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("ltmsearch.search.warmup.SAVING_SHARE", 1e9)
    notes = Notes()
    run_study(tiny(tmp_path / "whole", trials=2, **PLAN))
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "run", trials=2, **PLAN), Interrupt(5))
    assert (tmp_path / "run" / PROGRESS).exists()
    run_study(tiny(tmp_path / "run", trials=2, **PLAN), notes)
    assert any(line.startswith("continuing the warm-up after step ") for line in notes.lines)
    assert not (tmp_path / "run" / PROGRESS).exists()
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "run")


def test_files_of_other_studies_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    warming = WarmUpRun(prepare(tiny(tmp_path / "run", **PLAN), Callbacks()), tmp_path)
    warming.save()
    other = prepare(tiny(tmp_path / "run", **{**PLAN, "base_steps": 4}), Callbacks())
    with pytest.raises(InputError, match="must be the warm-up of this study, but is of another study; move it away"):
        WarmUpRun(other, tmp_path).resume()
    (tmp_path / PROGRESS).write_bytes(damaged := (tmp_path / PROGRESS).read_bytes()[:-9])
    with pytest.raises(InputError, match="must be the state of an ltmsearch training"):
        warming.resume()
    assert (tmp_path / PROGRESS).read_bytes() == damaged
