"""Where the time of a study went: counted once, kept over interruptions."""

from pathlib import Path
from types import SimpleNamespace

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


def test_parts_that_end_in_exceptions_and_moves(watch: Watch) -> None:
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), clock.part(TRAINING):
        watch.now += 1
        clock.move(9.0, SCORING)  # at most the seconds that there are
        watch.now += 3
        raise KeyboardInterrupt
    assert clock.seconds == {TRAINING: 3.0, SCORING: 1.0}


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


def test_the_announced_time_is_kept_beside_the_time_taken(watch: Watch, tmp_path: Path) -> None:
    clock = Clock()
    clock.keep(tmp_path, device="a machine", versions={})
    with clock.part(SET_UP):
        watch.now += 2
    clock.expect({WARM_UP: 10.0, TRAINING: 5.0})
    with clock.part(WARM_UP):
        watch.now += 11
    clock.save()
    (stint,) = Times.load(tmp_path).stints
    assert stint.expected == {SET_UP: 2.0, WARM_UP: 10.0, TRAINING: 5.0}
    assert stint.seconds == {SET_UP: 2.0, WARM_UP: 11.0}


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


@pytest.mark.parametrize("text", ["{", '{"schema_version": 2, "stints": []}'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / TIMES).write_text(text)
    with pytest.raises(InputError, match="times.json is damaged or of another version") as refused:
        Times.load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_an_interrupted_study_knows_all_its_time(tmp_path: Path) -> None:
    settings = StudySettings.make("test", **{**TINY, "trials": 3, "out": str(tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        run_study(settings, Interrupt(6))  # in the search, after some trials
    (first,) = Times.load(tmp_path).stints
    assert first.seconds.keys() >= {SET_UP, WARM_UP, TRAINING, SCORING, OVERHEAD}
    assert "writing results" not in first.seconds
    run_study(settings)
    times = Times.load(tmp_path)
    before, second = times.stints
    assert before == first
    assert second.seconds.keys() >= {SET_UP, "scoring again", "writing results"}
    assert "timing nets" not in second.seconds
    assert all(seconds > 0 for seconds in times.seconds.values())
    assert times.total == pytest.approx(first.total + second.total)
    assert "cpu, fp32" in second.device
    assert {"ltmsearch", "torch", "timm", "optuna", "python"} <= second.versions.keys()
