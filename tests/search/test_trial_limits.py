"""A trial that needs too much memory or too long fails alone, and not before what can be done was done."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Notes, tiny_vit
from support.sizes import TINY
from torch import Tensor

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.data.loading import ImageData
from ltmsearch.errors import TrialOutOfMemory, TrialTooLong, is_out_of_memory
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import MIN_TRIAL_LIMIT, prepare
from ltmsearch.search.trial import Evaluator, parameters

FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception = FULL) -> list[int]:
    """Raise the error for larger training batches; returns the list of the batch sizes from now on."""
    asked: list[int] = []
    original = ImageData.train_batches

    def train_batches(data: ImageData, *, batch_size: int, **how: Any) -> Iterator[tuple[Tensor, Tensor]]:
        asked.append(batch_size)
        for batch in original(data, batch_size=batch_size, **how):
            if batch_size > most:
                raise error
            yield batch

    monkeypatch.setattr(ImageData, "train_batches", train_batches)
    return asked


class TestMemory:
    @pytest.mark.parametrize("error", [FULL, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
    def test_the_batch_is_halved_once(
        self, evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        weights, asked = parameters(evaluator.supernet), limit_memory(monkeypatch, 2, error)
        result = evaluator.evaluate(weights, half, seed=3)
        assert asked == [4, 2]
        assert result.batch_size == 2
        assert result.weights.keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in weights.items()), "W itself is not touched"

    def test_then_the_trial_fails(
        self, evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = limit_memory(monkeypatch, 1)
        with pytest.raises(TrialOutOfMemory, match="memory is full with batch sizes 4 and 2"):
            evaluator.evaluate(parameters(evaluator.supernet), half, seed=3)
        assert asked == [4, 2]

    def test_other_errors_are_not_taken_for_it(
        self, evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit_memory(monkeypatch, 1, RuntimeError("shapes do not match"))
        with pytest.raises(RuntimeError, match="shapes do not match"):
            evaluator.evaluate(parameters(evaluator.supernet), half, seed=3)
        assert not is_out_of_memory(ValueError("can't allocate memory"))

    @pytest.mark.slow
    def test_the_study_continues_with_notes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original, calls, notes = ImageData.train_batches, [0], Notes()

        def train_batches(data: ImageData, *, batch_size: int, **how: Any) -> Iterator[tuple[Tensor, Tensor]]:
            calls[0] += 1
            for batch in original(data, batch_size=batch_size, **how):
                if calls[0] in (5, 7, 8):  # after the warm-up and what is measured before: one is halved, one fails
                    raise FULL
                yield batch

        monkeypatch.setattr(ImageData, "train_batches", train_batches)
        records = run_study(tiny_vit(tmp_path / "run"), notes).trials
        assert [r.state for r in records if r.label != "plain"].count("failed") == 1
        assert sum("trained with batch size 2: memory was full" in line for line in notes.lines) == 1
        assert sum("failed: memory is full with batch sizes 4 and 2" in line for line in notes.lines) == 1


class TestTime:
    @pytest.mark.parametrize("steps", [0, 1])
    def test_what_takes_too_long_is_given_up(self, evaluator: Evaluator, half: MergeSchedule, steps: int) -> None:
        with pytest.raises(TrialTooLong, match=r"longer than the limit of 1e-09 s \(--trial-timeout\)"):
            evaluator.evaluate(parameters(evaluator.supernet), half, seed=3, steps=steps, limit=1e-9)

    @pytest.mark.long
    def test_the_study_continues(self, tmp_path: Path) -> None:
        records = run_study(tiny_vit(tmp_path / "run", trials=2, trial_timeout=1e-9)).trials
        assert [record.state for record in records] == ["failed"] * 3
        more = run_study(tiny_vit(tmp_path / "run", trials=4)).trials
        assert [record.state for record in more] == ["failed"] * 3 + ["scored"] * 2

    @pytest.mark.long
    def test_without_a_limit_there_is_a_wide_one(self) -> None:
        context = prepare(StudySettings.make("test", **TINY), Callbacks())
        assert context.trial_limit() == MIN_TRIAL_LIMIT
        longer = replace(context, settings=context.settings.model_copy(update={"proxy_steps": 10**6}))
        rates = longer.trial_rates
        assert longer.trial_limit() == pytest.approx(20 * (10**6 * rates.step + (8 + 16) * rates.first_image))
