"""What a stopwatch decides holds for a whole study: number format and threads are settled once, and stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Interrupt, Notes, tiny_vit

from ltmsearch import run_study
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.stopwatch import THREADS_VARIABLES
from ltmsearch.errors import InputError
from ltmsearch.search import settled as module
from ltmsearch.search import trial
from ltmsearch.search.settled import SETTLED, ClassSize, Conditions, Settled, conditions
from ltmsearch.search.workers.ray import worker_threads

BF16 = Settled(
    device="cpu",
    precision="bf16",
    precision_reason="bf16 measured 3.0x as fast",
    threads=2,
    threads_reason="1 measured 0.6x as fast",
    classes={"cat": ClassSize(training=6, validation=2)},
)
"""Settled on a machine with bf16."""


@pytest.fixture(autouse=True)
def _counted_threads(threads: Callable[[int], None]) -> None:
    """No test depends on the threads of this machine or of the environment."""
    threads(2)


def settings(folder: Path, **changes: Any) -> ResolvedSettings:
    return tiny_vit(folder, **changes).resolved("cpu")


def apply(settled: Settled, folder: Path, *, available: int, **changes: Any) -> Conditions:
    """The conditions under which a study continues."""
    given = {"precision": "auto", **changes}
    return conditions(settled, settings(folder, **given), available=available, continues=True)


class Stopwatch:
    """Stopwatch with fixed results that counts its measurements."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        threads: int,
        dtype: torch.dtype,
        scoring: torch.dtype | None = None,
    ) -> None:
        self.threads, self.dtype, self.scoring, self.asked = threads, dtype, scoring or dtype, 0
        monkeypatch.setattr(module, "choose_threads", self.choose_threads)
        monkeypatch.setattr(module, "choose_runtime", self.choose_runtime)
        monkeypatch.setattr(module, "has_bf16", lambda _: True)

    def choose_threads(self, *_: Any) -> tuple[int, str]:
        self.asked += 1
        return self.threads, "measured"

    def choose_runtime(self, device: torch.device, *_: Any, train: bool) -> Runtime:
        dtype = self.dtype if train else self.scoring
        return Runtime(device=device, dtype=dtype, reason=f"bf16 measured {2 + train}.0x as fast")


class Seen(Notes):
    """Keeps what it hears, and the threads while trials run."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def advance(self, done: int, status: str = "") -> None:
        self.threads.add(torch.get_num_threads())


@pytest.mark.long
def test_a_study_that_continues_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Stopwatch(monkeypatch, threads=1, dtype=torch.bfloat16)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_vit(tmp_path, precision="auto", trials=1), Interrupt(2))
    assert first.asked == 1
    kept = Settled.load(tmp_path)
    assert kept is not None
    assert (kept.device, kept.precision, kept.threads) == ("cpu", "bf16", 1)
    with pytest.raises(InputError, match="precision was 'auto' and is now 'fp32'"):
        run_study(tiny_vit(tmp_path, precision="fp32", trials=1))

    other, seen = Stopwatch(monkeypatch, threads=2, dtype=torch.float32), Seen()
    run_study(tiny_vit(tmp_path, precision="auto", trials=1), seen)
    assert other.asked == 0
    assert Settled.load(tmp_path) == kept
    (device,) = (line for line in seen.lines if line.startswith("device:"))
    assert device == (
        "device: cpu, bf16 autocast (settled when the study began), channels last, 1 thread "
        "(settled when the study began)"
    )
    assert seen.threads == {1}
    assert torch.get_num_threads() == 2, "the process has its own number again"


@pytest.mark.parametrize(("has", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_threads_are_measured_in_the_format_that_is_likely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, precision: torch.dtype
) -> None:
    watch, used = Stopwatch(monkeypatch, threads=1, dtype=torch.float32), []
    monkeypatch.setattr(module, "has_bf16", lambda _: has)
    monkeypatch.setattr(
        module, "choose_threads", lambda runtime, *_: (used.append(runtime.dtype), watch.choose_threads())[1]
    )
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_vit(tmp_path, precision="auto", trials=1), Interrupt(1))
    assert used == [precision]


def test_trials_may_be_scored_in_another_format_than_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stopwatch(monkeypatch, threads=1, dtype=torch.float32, scoring=torch.bfloat16)
    seen, formats = Seen(), set[tuple[str, str]]()
    for name in ("proxy_train", "recalibrate_and_fit", "score"):
        original = getattr(trial, name)

        def logged(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            (runtime,) = (each for each in (*args, *kwargs.values()) if isinstance(each, Runtime))
            formats.add((name, runtime.precision))
            return original(*args, **kwargs)

        monkeypatch.setattr(trial, name, logged)
    run_study(tiny_vit(tmp_path, precision="auto", trials=1), seen)
    assert formats == {("proxy_train", "fp32"), ("recalibrate_and_fit", "bf16"), ("score", "bf16")}
    kept = Settled.load(tmp_path)
    assert kept is not None
    assert (kept.precision, kept.scoring_precision) == ("fp32", "bf16")
    (device,) = (line for line in seen.lines if line.startswith("device:"))
    assert device == (
        "device: cpu, fp32 (bf16 measured 3.0x as fast), channels last, scores in bf16 (bf16 measured 2.0x as fast), "
        "1 thread (measured)"
    )


def test_studies_with_one_number_format_score_as_they_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda _: True)
    fields = BF16.model_dump(exclude={"scoring_precision", "scoring_reason", "thresholds", "baselines"})
    (tmp_path / SETTLED).write_text(json.dumps(fields))
    begun = Settled.load(tmp_path)
    assert begun is not None
    assert apply(begun, tmp_path, available=2).scoring.precision == "bf16"


class TestOtherMachine:
    def test_the_same_one_needs_no_note(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "has_bf16", lambda _: True)
        found = apply(BF16, tmp_path, available=8)
        assert (found.training.precision, found.threads, found.notes) == ("bf16", 2, ())

    def test_with_fewer_cpus_all_of_them_are_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "has_bf16", lambda _: True)
        found = apply(BF16, tmp_path, available=1)
        assert found.threads == 1
        assert found.notes == (
            "2 threads were settled when the study began, but 1 now (all that torch uses here): scores may differ in "
            "their last digits from those of an uninterrupted search",
        )

    @pytest.mark.parametrize("name", THREADS_VARIABLES)
    def test_threads_that_the_user_sets_win(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(module, "has_bf16", lambda _: True)
        monkeypatch.setenv(name, "4")
        found = apply(BF16, tmp_path, available=4)
        assert (found.threads, found.threads_reason, len(found.notes)) == (4, "as requested", 1)

    def test_without_bf16_it_continues_in_fp32(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "has_bf16", lambda _: False)
        found = apply(BF16, tmp_path, available=2)
        assert (found.training.precision, found.scoring.precision) == ("fp32", "fp32")
        (note,) = found.notes
        assert note.startswith("bf16 was settled when the study began, but cpu has no bf16 instructions")
        assert apply(BF16, tmp_path, available=2, precision="bf16").training.precision == "bf16"

    def test_another_kind_of_device_is_told(self, tmp_path: Path) -> None:
        begun = BF16.model_copy(update={"device": "cuda", "precision": "fp32", "threads": None})
        found = apply(begun, tmp_path, available=2)
        assert found.threads == 2
        (note,) = found.notes
        assert note.startswith("the study began on cuda and continues on cpu")


@pytest.mark.parametrize(
    ("number", "available", "per_machine", "each"), [(8, 8, 4, 2), (1, 8, 4, 1), (2, 8, 2, 2), (8, 8, 16, 1)]
)
def test_workers_share_the_cpus_and_keep_the_settled_number(
    tmp_path: Path, number: int, available: int, per_machine: int, each: int
) -> None:
    settled = BF16.model_copy(update={"threads": number})
    assert worker_threads(apply(settled, tmp_path, available=available), per_machine) == each


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 2}', '{"precision": "fp64"}'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTLED).write_text(content)
    with pytest.raises(InputError, match=r"settled\.json is damaged or of another version; restore it") as refused:
        Settled.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Settled.load(tmp_path) is None
    BF16.save(tmp_path)
    assert Settled.load(tmp_path) == BF16
