"""Latency measurement with a simulated clock: values exact by hand."""

import math
import time
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from ltmsearch.latency.measurement import MIN_RUNS, PER_IQR, SAMPLE_SECONDS, UNSTABLE, InterleavedTimer, get_clock
from ltmsearch.schedules.schedule import MergeSchedule

PLAIN = MergeSchedule.uniform(["a", "b"], 1.0)
HALF = MergeSchedule(keep_ratios={"a": 0.5, "b": 1.0})
LESS = MergeSchedule(keep_ratios={"a": 0.3, "b": 1.0})
Milliseconds = Callable[[MergeSchedule, int], float]
"""Duration of one run of a network at the n-th sample."""


class Runner:
    """Networks with given run times, on a clock that only they advance.

    Args:
        ms: See `Milliseconds`.
        parts: Share of each module in the run time.
        switches_fast: See `NetworkRunner`.
    """

    def __init__(
        self,
        ms: Milliseconds,
        parts: Callable[[MergeSchedule], dict[str, float]] | None = None,
        switches_fast: bool = True,
    ) -> None:
        self.switches_fast, self._ms, self._parts = switches_fast, ms, parts or (lambda _: {})
        self.now, self.visited, self.runs = 0.0, [], 0
        self._seen: dict[str, list[float]] = {}

    def clock(self) -> float:
        return self.now

    def load(self, schedule: MergeSchedule) -> Callable[[], object]:
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

    def module_times(self) -> dict[str, list[float]]:
        seen, self._seen = self._seen, {}
        return seen


@pytest.fixture
def make_timer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., InterleavedTimer]:
    def make(runner: Runner, **options: Any) -> InterleavedTimer:
        monkeypatch.setattr("ltmsearch.latency.measurement.get_clock", lambda *_: runner.clock)
        return InterleavedTimer(runner, PLAIN, device="cpu", threads=1, **options)

    return make


def take(make_timer: InterleavedTimer, *arguments: Any, **options: Any) -> int:
    """How often the visits of a make_timer yielded."""
    return sum(1 for _ in make_timer.sample(*arguments, **options))


def test_ratios_cancel_drift_of_the_machine(make_timer: Any) -> None:
    """Everything takes half as long again with every visit: the ratio is 0.8 all the while."""
    runner = Runner(lambda net, place: (50.0 if net == PLAIN else 40.0) * (1 + 0.5 * place))
    timed = make_timer(runner)
    assert take(timed, [HALF], 4) == 4
    assert runner.visited == [PLAIN, HALF] * 4 + [PLAIN]
    result, plain = timed.measurement(HALF), timed.measurement(PLAIN)
    # Plain visits take 50, 100, …, 250 ms: the least median of three is 100. The net's take 60, 100, 140, 180.
    assert plain.ms == plain.least_ms == pytest.approx(100)
    assert result.ms == pytest.approx(80)
    assert result.least_ms == pytest.approx(100)
    assert result.iqr_ms == pytest.approx(150 - 90)
    assert result.error == pytest.approx(0, abs=1e-12)
    assert (result.visits, result.runs, result.stable) == (4, 4 * MIN_RUNS, True)
    assert plain.iqr_ms == pytest.approx(200 - 100)
    assert plain.error == pytest.approx(PER_IQR * 100 / 150 / math.sqrt(5))
    assert not plain.stable, "the drift is seen where nothing cancels it"


def test_plain_network_uses_the_lowest_median(make_timer: Any) -> None:
    seen = [80.0, 40.0, 80.0, 60.0, 62.0, 61.0, 80.0]
    timed = make_timer(Runner(lambda _, place: seen[place]))
    assert take(timed, [PLAIN], 6) == 6
    result = timed.measurement(PLAIN)
    # Medians of three in a row: 80, 60, 62, 61, 62. Sorted: 40 60 61 62 80 80 80; quartiles 60.5 and 80, median 62.
    assert result.ms == result.least_ms == pytest.approx(60)
    assert result.iqr_ms == pytest.approx(19.5)
    assert result.error == pytest.approx(0.93 * 19.5 / 62 / math.sqrt(7))
    assert (result.visits, result.runs, result.stable) == (7, 21, False)


def test_few_samples_use_the_median_of_all(make_timer: Any) -> None:
    timed = make_timer(Runner(lambda _, place: [60.0, 50.0][place]))
    take(timed, [PLAIN], 1)
    assert timed.measurement(PLAIN).ms == pytest.approx(55)


def test_errors_and_quartiles_use_ratios(make_timer: Any) -> None:
    ratios = [0.6, 0.7, 0.8, 1.0]
    timed = make_timer(Runner(lambda net, place: 50.0 if net == PLAIN else 50.0 * ratios[place // 2]))
    take(timed, [HALF], 4)
    result = timed.measurement(HALF)
    # Quartiles of the ratios: 0.675 and 0.85; median 0.75.
    assert result.ms == pytest.approx(0.75 * 50)
    assert result.error == pytest.approx(0.93 * 0.175 / 0.75 / 2)
    assert result.iqr_ms == pytest.approx(0.175 * 50)
    assert result.least_ms == pytest.approx(35), "medians of 30, 35, 40 and of 35, 40, 50"
    assert not result.stable


def test_unstable_networks_are_sampled_again(make_timer: Any) -> None:
    """One is steady at once, one after it was visited again, one never."""
    others = [MergeSchedule(keep_ratios={"a": ratio, "b": 1.0}) for ratio in (0.7, 0.5, 0.3)]
    steady, late, never = others
    took = {steady: [40.0] * 9, late: [40.0, 45.0, 42.5, 42.5, 99.0], never: [20.0, 40.0] * 9}
    visits = dict.fromkeys(others, 0)

    def ms(net: MergeSchedule, place: int) -> float:
        return 50.0 if net == PLAIN else took[net][visits[net]]

    runner = Runner(ms)
    load = runner.load

    def counted(net: MergeSchedule) -> Callable[[], object]:
        run = load(net)
        if net != PLAIN:
            visits[net] = runner.visited.count(net) - 1
        return run

    runner.load = counted  # type: ignore[method-assign]
    timed = make_timer(runner)
    assert take(timed, others, 2, extra_rounds=2) == 6 + 4 + 2
    assert {net: timed.measurement(net).visits for net in others} == {steady: 2, late: 4, never: 6}
    assert [timed.measurement(net).stable for net in others] == [True, True, False]
    # Of 0.8, 0.9, 0.85, 0.85 the quartiles are 0.0125 from the median.
    assert timed.measurement(late).error == pytest.approx(0.93 * 0.025 / 0.85 / 2)
    assert timed.measurement(late).error < UNSTABLE < timed.measurement(never).error
    assert runner.visited[-1] == PLAIN, "every net has a plain visit behind it"
    assert all(PLAIN in runner.visited[i - 1 : i + 2 : 2] for i, net in enumerate(runner.visited) if net != PLAIN)


def test_stable_networks_are_not_sampled_again(make_timer: Any) -> None:
    runner = Runner(lambda net, _: 50.0 if net == PLAIN else 40.0)
    assert take(make_timer(runner), [HALF, LESS], 3, extra_rounds=5) == 6
    assert len(runner.visited) == 13
    assert {(runner.visited[i], runner.visited[i + 1]) for i in range(0, 12, 2)} == {(PLAIN, HALF), (PLAIN, LESS)}
    again = Runner(lambda net, _: 50.0 if net == PLAIN else 40.0)
    take(make_timer(again), [HALF, LESS], 3)
    assert again.visited == runner.visited, "the order is drawn, by a seed"
    for start in (0, 4, 8):
        assert set(runner.visited[start : start + 4]) == {PLAIN, HALF, LESS}, "all of them in every round"


def test_slow_switching_samples_networks_in_a_row(make_timer: Any) -> None:
    runner = Runner(lambda net, _: 50.0 if net == PLAIN else 40.0, switches_fast=False)
    take(make_timer(runner), [HALF, LESS], 3)
    assert [net for net in runner.visited if net != PLAIN] == [HALF] * 3 + [LESS] * 3
    assert runner.visited[::2] == [PLAIN] * 7


@pytest.mark.parametrize(("known", "base"), [(90.0, 90.0), (120.0, 100.0), (None, 100.0)])
def test_ratios_are_scaled_by_the_faster_plain_latency(make_timer: Any, known: float | None, base: float) -> None:
    timed = make_timer(Runner(lambda net, _: 100.0 if net == PLAIN else 80.0), plain_ms=known)
    take(timed, [HALF], 3)
    assert timed.measurement(PLAIN).ms == pytest.approx(base)
    assert timed.measurement(HALF).ms == pytest.approx(0.8 * base)
    assert timed.measurement(PLAIN).least_ms == pytest.approx(100), "what this make_timer saw"
    assert timed.measurement(HALF).least_ms == pytest.approx(80)


def test_module_times_scale_with_the_plain_network(make_timer: Any) -> None:
    """Part a: 20 of the plain net's 50 ms, 12 of the merged net's 40; all under a drift; warm-up runs left out."""

    def parts(net: MergeSchedule) -> dict[str, float]:
        return {"a": 0.4, "b": 0.1} if net == PLAIN else {"a": 0.3, "b": 0.125}

    timed = make_timer(Runner(lambda net, place: (50.0 if net == PLAIN else 40.0) * (1 + 0.5 * place), parts))
    take(timed, [HALF], 4)
    assert timed.measurement(PLAIN).ms == pytest.approx(100)
    assert timed.extra_module_ms(HALF) == {"a": pytest.approx((12 / 20 - 1) * 40), "b": pytest.approx(0.0, abs=1e-9)}
    assert timed.extra_module_ms(PLAIN) == {"a": pytest.approx(0.0, abs=1e-9), "b": pytest.approx(0.0, abs=1e-9)}


def test_runner_without_module_times(make_timer: Any) -> None:
    runner = Runner(lambda *_: 50.0)
    runner.module_times = dict  # type: ignore[method-assign, assignment]
    timed = make_timer(runner)
    take(timed, [HALF], 2)
    assert timed.extra_module_ms(HALF) == {}


def test_number_of_runs_depends_on_duration(make_timer: Any) -> None:
    runner = Runner(lambda net, _: 2.0 if net == PLAIN else 1000.0)
    timed = make_timer(runner)
    take(timed, [HALF], 2)
    often = round(SAMPLE_SECONDS / 0.002)
    assert often == 50
    # Plain, half, plain, half, plain: as often as the net before them asked for.
    assert timed.measurement(PLAIN).runs == MIN_RUNS + MIN_RUNS + MIN_RUNS
    assert timed.measurement(HALF).runs == often + often
    assert timed.measurement(HALF).ms == pytest.approx(1000)


def test_clock_of_one_cpu_thread() -> None:
    assert get_clock("cpu", 1) is time.thread_time
    assert get_clock("cpu", 2) is timeit.default_timer
    assert get_clock("cuda", None) is timeit.default_timer
