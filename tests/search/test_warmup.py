"""A warm-up that is stopped goes on where it was saved, and ends as if it had not been stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Interrupt, tiny

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.search.checkpoint import load_checkpoint
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import parameters
from ltmsearch.search.warmup import PROGRESS, WarmUpRun

PLAN: dict[str, Any] = {"base_steps": 3, "sandwich_steps": 3, "sandwich_subnets": 2}


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


@pytest.mark.parametrize("stopped", [1, 3, 5])
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
    one, other = (parameters(each.bench.evaluator.supernet) for each in (whole, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    second.remove()
    assert second.resume() == 0


def test_a_run_that_is_stopped_in_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.search.warmup.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("ltmsearch.search.warmup.SAVING_SHARE", 1e9)
    lines: list[str] = []

    class Heard(Callbacks):
        def note(self, line: str) -> None:
            lines.append(line)

    run_study(tiny(tmp_path / "whole", trials=2, **PLAN))
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "run", trials=2, **PLAN), Interrupt(5))
    assert (tmp_path / "run" / PROGRESS).exists()
    run_study(tiny(tmp_path / "run", trials=2, **PLAN), Heard())
    assert any(line.startswith("continuing the warm-up after step ") for line in lines)
    assert not (tmp_path / "run" / PROGRESS).exists()
    weights, others = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "run")
    assert weights is not None
    assert others is not None
    assert all(torch.equal(value, others.weights[name]) for name, value in weights.weights.items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "must be the state of an ltmsearch training"),
        (lambda path: path.write_bytes(b"nonsense"), "must be the state of an ltmsearch training"),
    ],
)
def test_a_damaged_file_is_told_and_left_alone(tmp_path: Path, damage: Any, message: str) -> None:
    warming = WarmUpRun(prepare(tiny(tmp_path / "run", **PLAN), Callbacks()), tmp_path)
    warming.save()
    damage(tmp_path / PROGRESS)
    before = (tmp_path / PROGRESS).read_bytes()
    with pytest.raises(InputError, match=message):
        warming.resume()
    assert (tmp_path / PROGRESS).read_bytes() == before


def test_that_of_another_study_is_not_taken(tmp_path: Path) -> None:
    bench = prepare(tiny(tmp_path / "run", **PLAN), Callbacks())
    WarmUpRun(bench, tmp_path).save()
    other = prepare(tiny(tmp_path / "run", **{**PLAN, "base_steps": 4}), Callbacks())
    with pytest.raises(InputError, match="must be the warm-up of this study, but is of another study; move it away"):
        WarmUpRun(other, tmp_path).resume()
