"""Where the time of a study went: counted once, kept over interruptions."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command_line import Interrupt
from support.sizes import TINY

from ltmsearch import StudySettings, run_study
from ltmsearch.errors import InputError
from ltmsearch.search.timing import OVERHEAD, SCORING, SET_UP, TIMES, TRAINING, WARM_UP, Clock, Times


class Watch:
    """A clock that stands still unless told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("ltmsearch.search.timing.time", SimpleNamespace(perf_counter=watch))
    return watch


def test_every_second_counts_once_in_the_innermost_part(watch: Watch) -> None:
    clock = Clock()
    watch.now += 5  # outside all parts
    with clock.part(OVERHEAD):
        watch.now += 1
        with clock.part(TRAINING):
            watch.now += 10
            clock.move(4.0, SCORING)
        watch.now += 2
    watch.now += 5
    assert clock.seconds == {OVERHEAD: 3.0, TRAINING: 6.0, SCORING: 4.0}


def test_no_more_is_moved_than_there_is(watch: Watch) -> None:
    clock = Clock()
    with clock.part(TRAINING):
        watch.now += 1
        clock.move(9.0, SCORING)
    assert clock.seconds == {TRAINING: 0.0, SCORING: 1.0}


def test_a_part_that_ends_in_an_exception_counts(watch: Watch) -> None:
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), clock.part(WARM_UP):
        watch.now += 3
        raise KeyboardInterrupt
    assert clock.seconds == {WARM_UP: 3.0}


def test_times_add_up_over_the_calls_of_a_study(watch: Watch, tmp_path: Path) -> None:
    for part, versions in ((WARM_UP, {"torch": "1"}), (TRAINING, {"torch": "2"})):
        clock = Clock()
        with clock.part(SET_UP):
            watch.now += 2
        clock.keep(tmp_path, device="a machine", versions=versions)
        with clock.part(part):
            watch.now += 10
            clock.save()  # the part that runs is in it
            watch.now += 1
        clock.save()
    times = Times.load(tmp_path)
    assert times.seconds == {SET_UP: 4.0, WARM_UP: 11.0, TRAINING: 11.0}
    assert list(times.seconds) == [SET_UP, WARM_UP, TRAINING]
    assert times.total == 26.0
    assert [stint.versions for stint in times.stints] == [{"torch": "1"}, {"torch": "2"}]
    assert all(stint.started.tzinfo is not None for stint in times.stints)
    assert [path.name for path in tmp_path.iterdir()] == [TIMES]


def test_saving_between_trials_is_not_done_all_the_time(watch: Watch, tmp_path: Path) -> None:
    clock = Clock()
    clock.keep(tmp_path, device="a machine", versions={})
    with clock.part(TRAINING):
        for seconds in (4, 2, 4):
            watch.now += seconds
            clock.tick()
    assert Times.load(tmp_path).seconds == {TRAINING: 6.0}
    clock.save()
    assert Times.load(tmp_path).seconds == {TRAINING: 10.0}


def test_a_clock_that_keeps_nothing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Clock().save()
    assert list(tmp_path.iterdir()) == []
    assert Times.load(tmp_path) == Times()  # a run made before times were kept


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 2, "stints": []}', '{"stints": [{"seconds": {"warm-up": -1}}]}']
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / TIMES).write_text(text)
    with pytest.raises(InputError, match="times.json is damaged or of another version") as refused:
        Times.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_study_that_is_interrupted_and_continued_knows_all_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    settings = StudySettings.make("test", **{**TINY, "trials": 3, "out": str(tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        run_study(settings, Interrupt(6))  # in the search, after some trials
    first = read(tmp_path)
    assert len(first) == 1
    assert first[0]["seconds"].keys() >= {SET_UP, WARM_UP, TRAINING, SCORING, OVERHEAD}
    assert "writing results" not in first[0]["seconds"]
    run_study(settings)
    both = read(tmp_path)
    assert both[:1] == first
    assert both[1]["seconds"].keys() >= {SET_UP, "scoring again", "writing results"}
    assert "timing nets" not in both[1]["seconds"]
    times = Times.load(tmp_path)
    assert all(seconds > 0 for seconds in times.seconds.values())
    assert times.total == pytest.approx(sum(sum(stint["seconds"].values()) for stint in both))
    assert "cpu, fp32" in both[1]["device"]
    assert {"ltmsearch", "torch", "timm", "optuna", "python"} <= both[1]["versions"].keys()


def read(folder: Path) -> list[dict[str, Any]]:
    stints: list[dict[str, Any]] = json.loads((folder / TIMES).read_text())["stints"]
    return stints
