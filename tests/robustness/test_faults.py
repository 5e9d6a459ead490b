"""Drivers, workers and databases are killed at random moments; the same command continues, and nothing is lost.

A study that was disturbed ends with the same trials, front and weights as one that was not.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.command_line import tiny
from support.faults import Trials, assert_weights_are_whole, fingerprint, finished_trials, searching
from support.postgres import Postgres
from support.processes import children, title

from ltmsearch.study import run_study

pytestmark = pytest.mark.slow


def seeds(number: int, *, slow: int) -> list[Any]:
    """Seeds of the moments, one study each. Only the first ones run with the slow tests.

    Args:
        number: Number of seeds.
        slow: Number of seeds that do not need `pytest -m thorough`.
    """
    return [pytest.param(seed, marks=[] if seed < slow else pytest.mark.thorough) for seed in range(number)]


KILLS = 5
"""Maximum per study."""
STUDY: dict[str, Any] = {"objective": "kl", "trials": 8}
"""With a teacher, and trials that screening proposes."""


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        yield


def finish(run: Path, **options: Any) -> None:
    """Run or continue a study to its end in a separate process."""
    with searching(run, **options) as process:
        process.join(240)
        assert process.exitcode == 0, run.with_suffix(".log").read_text()


class Undisturbed:
    """A study without faults, and its duration in a separate process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for _ in range(2):  # the first includes the imports of the process server
            begun = time.monotonic()
            finish(folder / f"run{_}", **STUDY)
            self.seconds = time.monotonic() - begun
        self.run = folder / "run1"
        self.trials, self.front = outcome(self.run)
        self.weights = fingerprint(self.run)

    def assert_same(self, run: Path) -> None:
        trials, front = outcome(run)
        pd.testing.assert_frame_equal(trials, self.trials)
        assert front == self.front
        assert fingerprint(run) == self.weights
        assert not [path for path in run.rglob(".*") if path.is_file()], "what was half written is gone"


def outcome(run: Path) -> tuple[pd.DataFrame, str]:
    return pd.read_csv(run / "trials.csv").drop(columns="seconds"), (run / "front.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


def assert_kept(before: Trials, after: Trials) -> None:
    """Check that stored trials are unchanged."""
    assert {number: after.get(number) for number in before} == before


@pytest.mark.parametrize("seed", seeds(9, slow=1))
def test_drivers_are_killed(
    undisturbed: Undisturbed, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """Also while a driver of a finished study writes the results again."""
    chance, run, kept, kills = random.Random(seed), tmp_path / "run", Trials(), 0
    while kills < KILLS:
        with searching(run, **STUDY) as process:  # killed at its end
            process.join(chance.uniform(0.05, 0.6) * undisturbed.seconds)
            ended = process.exitcode
        kills += ended is None
        assert ended in (None, 0), run.with_suffix(".log").read_text()
        now = finished_trials(run)
        assert_kept(kept, now)
        assert_weights_are_whole(run, now)
        kept = now
    finish(run, **STUDY)
    assert_kept(kept, finished_trials(run))
    undisturbed.assert_same(run)
    record_property("summary", f"faults: a driver was killed {kills} times, and the study is as if undisturbed")


@pytest.mark.parametrize("seed", seeds(2, slow=1))
def test_databases_are_killed(
    undisturbed: Undisturbed,
    postgres: Postgres,
    tmp_path: Path,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    chance, run, kills = random.Random(seed), tmp_path / "run", 0
    options = {**STUDY, "study": f"killed-{seed}", "storage": postgres.url(password=True)}
    with ExitStack() as started:
        process = started.enter_context(searching(run, **options))
        while kills < KILLS:
            process.join(chance.uniform(0.1, 0.5) * undisturbed.seconds)
            postgres.kill()
            kills += 1
            time.sleep(chance.uniform(0, 1.5))
            postgres.start()
            if process.exitcode is not None:  # the first connection of a run is not retried
                process = started.enter_context(searching(run, **options))
        process.join(240)
    if process.exitcode != 0:
        finish(run, **options)
    undisturbed.assert_same(run)
    record_property("summary", f"faults: PostgreSQL was killed {kills} times, and the study is as if undisturbed")


@pytest.mark.thorough
def test_workers_are_killed(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """With two workers the order of trials is random, so there is no study to compare with."""
    chance, killed, over = random.Random(0), [], threading.Event()

    def kill_now_and_then() -> None:
        while not over.wait(chance.uniform(2, 6)) and len(killed) < 12:
            busy = [pid for pid in children(os.getpid()) if "ray::TrialWorker" in title(pid)]
            if busy:
                os.kill(victim := chance.choice(busy), signal.SIGKILL)
                killed.append(victim)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        result = run_study(tiny(tmp_path / "run", workers=2, trials=60, proxy_steps=4))
    finally:
        over.set()
        killer.join()
    trials = finished_trials(tmp_path / "run")
    counted = [r for r in result.trials if r.label != "plain" and r.state in ("scored", "failed")]
    assert len(counted) == 60
    failed = [record for record in counted if record.state == "failed"]
    assert len(failed) <= len(killed) // 3, "a trial fails when the third worker dies during it, not before"
    assert sorted(trials) == list(range(len(trials)))
    assert_weights_are_whole(tmp_path / "run", trials)
    assert len(result.front) >= 1
    record_property(
        "summary", f"faults: workers killed {len(killed)} times in one study of 60 trials, {len(failed)} failed"
    )
    assert len(killed) >= 5


def test_terminated_and_continued(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with searching(tmp_path / "run", **STUDY) as process:
        process.join(0.6 * undisturbed.seconds)
        process.terminate()
        process.join(60)
        assert process.exitcode is not None
    finish(tmp_path / "run", **STUDY)
    undisturbed.assert_same(tmp_path / "run")
