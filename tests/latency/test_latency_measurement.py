"""Timing by a clock that the tests turn: readings exact by hand."""

import math
import time
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from ltmsearch.latency.measurement import MIN_RUNS, PER_IQR, UNSTABLE, VISIT_SECONDS, Session, clock_of
from ltmsearch.schedules.schedule import MergeSchedule

PLAIN = MergeSchedule.uniform(["a", "b"], 1.0)
HALF = MergeSchedule(keep_ratios={"a": 0.5, "b": 1.0})
LESS = MergeSchedule(keep_ratios={"a": 0.3, "b": 1.0})
Milliseconds = Callable[[MergeSchedule, int], float]
"""Of one run of a net at the n-th visit of all."""


class Stage:
    """Nets that take as long as they are told, by a clock that only they move.

    Args:
        ms: See `Milliseconds`.
        parts: Shares of the time that named parts of a net take.
        keeps_all: See `latency.reading.Stage`.
    """

    def __init__(
        self, ms: Milliseconds, parts: Callable[[MergeSchedule], dict[str, float]] | None = None, keeps_all: bool = True
    ) -> None:
        self.keeps_all, self._ms, self._parts = keeps_all, ms, parts or (lambda _: {})
        self.now, self.visited, self.runs = 0.0, [], 0
        self._seen: dict[str, list[float]] = {}

    def clock(self) -> float:
        return self.now

    def ready(self, schedule: MergeSchedule) -> Callable[[], object]:
        place, self.runs = len(self.visited), 0
        self.visited.append(schedule)
        self._seen = {"stale": [1e9], **{name: [1e9] for name in self._parts(schedule)}}  # of nobody's visit

        def run() -> None:
            ms = self._ms(schedule, place)
            self.runs += 1
            for name, share in self._parts(schedule).items():  # the two runs that warm up are slower
                self._seen.setdefault(name, []).append(share * ms * (7 if self.runs <= 2 else 1))
            self.now += ms / 1e3

        return run

    def segments(self) -> dict[str, list[float]]:
        seen, self._seen = self._seen, {}
        return seen


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    def make(stage: Stage, **options: Any) -> Session:
        monkeypatch.setattr("ltmsearch.latency.measurement.clock_of", lambda *_: stage.clock)
        return Session(stage, PLAIN, device="cpu", threads=1, **options)

    return make


def visit(session: Session, *arguments: Any, **options: Any) -> int:
    """How often the visits of a session yielded."""
    return sum(1 for _ in session.visit_all(*arguments, **options))


def test_the_ratio_to_neighbours_cancels_a_drift_of_the_machine(session: Any) -> None:
    """Everything takes half as long again with every visit: the ratio is 0.8 all the while."""
    stage = Stage(lambda net, place: (50.0 if net == PLAIN else 40.0) * (1 + 0.5 * place))
    timed = session(stage)
    assert visit(timed, [HALF], 4) == 4
    assert stage.visited == [PLAIN, HALF] * 4 + [PLAIN]
    reading, plain = timed.reading(HALF), timed.reading(PLAIN)
    # Plain visits take 50, 100, …, 250 ms: the least median of three is 100. The net's take 60, 100, 140, 180.
    assert plain.ms == plain.least_ms == pytest.approx(100)
    assert reading.ms == pytest.approx(80)
    assert reading.least_ms == pytest.approx(100)
    assert reading.iqr_ms == pytest.approx(150 - 90)
    assert reading.error == pytest.approx(0, abs=1e-12)
    assert (reading.visits, reading.runs, reading.stable) == (4, 4 * MIN_RUNS, True)
    assert plain.iqr_ms == pytest.approx(200 - 100)
    assert plain.error == pytest.approx(PER_IQR * 100 / 150 / math.sqrt(5))
    assert not plain.stable, "the drift is seen where nothing cancels it"


def test_of_the_plain_net_the_least_median_counts_and_not_one_lucky_visit(session: Any) -> None:
    seen = [80.0, 40.0, 80.0, 60.0, 62.0, 61.0, 80.0]
    timed = session(Stage(lambda _, place: seen[place]))
    assert visit(timed, [PLAIN], 6) == 6
    reading = timed.reading(PLAIN)
    # Medians of three in a row: 80, 60, 62, 61, 62. Sorted: 40 60 61 62 80 80 80; quartiles 60.5 and 80, median 62.
    assert reading.ms == reading.least_ms == pytest.approx(60)
    assert reading.iqr_ms == pytest.approx(19.5)
    assert reading.error == pytest.approx(0.93 * 19.5 / 62 / math.sqrt(7))
    assert (reading.visits, reading.runs, reading.stable) == (7, 21, False)


def test_few_visits_are_medians_of_what_there_is(session: Any) -> None:
    timed = session(Stage(lambda _, place: [60.0, 50.0][place]))
    visit(timed, [PLAIN], 1)
    assert timed.reading(PLAIN).ms == pytest.approx(55)


def test_error_and_quartiles_of_a_net_are_of_its_ratios(session: Any) -> None:
    ratios = [0.6, 0.7, 0.8, 1.0]
    timed = session(Stage(lambda net, place: 50.0 if net == PLAIN else 50.0 * ratios[place // 2]))
    visit(timed, [HALF], 4)
    reading = timed.reading(HALF)
    # Quartiles of the ratios: 0.675 and 0.85; median 0.75.
    assert reading.ms == pytest.approx(0.75 * 50)
    assert reading.error == pytest.approx(0.93 * 0.175 / 0.75 / 2)
    assert reading.iqr_ms == pytest.approx(0.175 * 50)
    assert reading.least_ms == pytest.approx(35), "medians of 30, 35, 40 and of 35, 40, 50"
    assert not reading.stable


def test_unstable_nets_are_visited_again_and_then_flagged(session: Any) -> None:
    """One is steady at once, one after it was visited again, one never."""
    others = [MergeSchedule(keep_ratios={"a": ratio, "b": 1.0}) for ratio in (0.7, 0.5, 0.3)]
    steady, late, never = others
    took = {steady: [40.0] * 9, late: [40.0, 45.0, 42.5, 42.5, 99.0], never: [20.0, 40.0] * 9}
    visits = dict.fromkeys(others, 0)

    def ms(net: MergeSchedule, place: int) -> float:
        return 50.0 if net == PLAIN else took[net][visits[net]]

    stage = Stage(ms)
    ready = stage.ready

    def counted(net: MergeSchedule) -> Callable[[], object]:
        run = ready(net)
        if net != PLAIN:
            visits[net] = stage.visited.count(net) - 1
        return run

    stage.ready = counted  # type: ignore[method-assign]
    timed = session(stage)
    assert visit(timed, others, 2, again=2) == 6 + 4 + 2
    assert {net: timed.reading(net).visits for net in others} == {steady: 2, late: 4, never: 6}
    assert [timed.reading(net).stable for net in others] == [True, True, False]
    # Of 0.8, 0.9, 0.85, 0.85 the quartiles are 0.0125 from the median.
    assert timed.reading(late).error == pytest.approx(0.93 * 0.025 / 0.85 / 2)
    assert timed.reading(late).error < UNSTABLE < timed.reading(never).error
    assert stage.visited[-1] == PLAIN, "every net has a plain visit behind it"
    assert all(PLAIN in stage.visited[i - 1 : i + 2 : 2] for i, net in enumerate(stage.visited) if net != PLAIN)


def test_nothing_is_visited_again_where_all_is_steady(session: Any) -> None:
    stage = Stage(lambda net, _: 50.0 if net == PLAIN else 40.0)
    assert visit(session(stage), [HALF, LESS], 3, again=5) == 6
    assert len(stage.visited) == 13
    assert {(stage.visited[i], stage.visited[i + 1]) for i in range(0, 12, 2)} == {(PLAIN, HALF), (PLAIN, LESS)}
    again = Stage(lambda net, _: 50.0 if net == PLAIN else 40.0)
    visit(session(again), [HALF, LESS], 3)
    assert again.visited == stage.visited, "the order is drawn, by a seed"
    for start in (0, 4, 8):
        assert set(stage.visited[start : start + 4]) == {PLAIN, HALF, LESS}, "all of them in every round"


def test_a_stage_that_holds_one_net_times_it_to_the_end(session: Any) -> None:
    stage = Stage(lambda net, _: 50.0 if net == PLAIN else 40.0, keeps_all=False)
    visit(session(stage), [HALF, LESS], 3)
    assert [net for net in stage.visited if net != PLAIN] == [HALF] * 3 + [LESS] * 3
    assert stage.visited[::2] == [PLAIN] * 7


@pytest.mark.parametrize(("known", "base"), [(90.0, 90.0), (120.0, 100.0), (None, 100.0)])
def test_ratios_are_scaled_by_the_faster_of_this_session_and_an_earlier_one(
    session: Any, known: float | None, base: float
) -> None:
    timed = session(Stage(lambda net, _: 100.0 if net == PLAIN else 80.0), plain_ms=known)
    visit(timed, [HALF], 3)
    assert timed.reading(PLAIN).ms == pytest.approx(base)
    assert timed.reading(HALF).ms == pytest.approx(0.8 * base)
    assert timed.reading(PLAIN).least_ms == pytest.approx(100), "what this session saw"
    assert timed.reading(HALF).least_ms == pytest.approx(80)


def test_parts_take_their_share_of_the_plain_net_at_its_quietest(session: Any) -> None:
    """Part a: 20 of the plain net's 50 ms, 12 of the merged net's 40; all under a drift; warm-up runs left out."""

    def parts(net: MergeSchedule) -> dict[str, float]:
        return {"a": 0.4, "b": 0.1} if net == PLAIN else {"a": 0.3, "b": 0.125}

    timed = session(Stage(lambda net, place: (50.0 if net == PLAIN else 40.0) * (1 + 0.5 * place), parts))
    visit(timed, [HALF], 4)
    assert timed.reading(PLAIN).ms == pytest.approx(100)
    assert timed.extra_segments(HALF) == {"a": pytest.approx((12 / 20 - 1) * 40), "b": pytest.approx(0.0, abs=1e-9)}
    assert timed.extra_segments(PLAIN) == {"a": pytest.approx(0.0, abs=1e-9), "b": pytest.approx(0.0, abs=1e-9)}


def test_a_stage_without_parts_has_none(session: Any) -> None:
    stage = Stage(lambda *_: 50.0)
    stage.segments = dict  # type: ignore[method-assign, assignment]
    timed = session(stage)
    visit(timed, [HALF], 2)
    assert timed.extra_segments(HALF) == {}


def test_quick_nets_run_often_and_slow_ones_three_times(session: Any) -> None:
    stage = Stage(lambda net, _: 2.0 if net == PLAIN else 1000.0)
    timed = session(stage)
    visit(timed, [HALF], 2)
    often = round(VISIT_SECONDS / 0.002)
    assert often == 50
    # Plain, half, plain, half, plain: as often as the net before them asked for.
    assert timed.reading(PLAIN).runs == MIN_RUNS + MIN_RUNS + MIN_RUNS
    assert timed.reading(HALF).runs == often + often
    assert timed.reading(HALF).ms == pytest.approx(1000)


def test_the_clock_is_the_threads_own_on_one_thread_of_a_cpu() -> None:
    assert clock_of("cpu", 1) is time.thread_time
    assert clock_of("cpu", 2) is timeit.default_timer
    assert clock_of("cuda", None) is timeit.default_timer
