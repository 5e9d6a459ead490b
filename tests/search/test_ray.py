"""Workers on a real Ray on this machine: they die, hang and fail, and the search continues."""

import ctypes
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command_line import Notes, tiny, tiny_options
from support.faults import fingerprint
from support.processes import DEVNULL, PIPE, Completed, children, is_running, started, title
from support.records import read_equal_columns

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import Score
from ltmsearch.errors import InputError, WorkersLost
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.trial import TrialResult
from ltmsearch.search.workers import Answer, ScoreAnswer, ScoreTask, Task
from ltmsearch.search.workers.actor import Ready
from ltmsearch.search.workers.connection import Connection, connect
from ltmsearch.search.workers.ray import RayWorkers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


class Scripted:
    """A worker whose behaviour depends on the number of the trial, and that counts its tries in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def prepare(self, state: dict[str, np.ndarray], teacher: dict[str, np.ndarray]) -> Ready:
        assert teacher["search"].tolist() == [[0.5, 0.5]], "the driver's predictions come with the start"
        if (self.folder / "refuse").exists():
            raise InputError("the worker on here: no such folder")
        if (self.folder / "die at once").exists():
            os._exit(1)
        return Ready(host="here", device="cpu", threads=len(state))

    def evaluate(self, task: Task, weights: dict[str, np.ndarray]) -> Answer:
        mark = self.folder / f"{task.trial}"
        tries = len(mark.read_text()) if mark.exists() else 0
        mark.write_text("x" * (tries + 1))
        if task.trial == 1 and tries == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.trial == 2:
            ctypes.string_at(0)  # a segmentation fault at every try
        if task.trial == 3 and tries == 0:
            time.sleep(3600)
        if task.trial == 4:
            return Answer(trial=4, failure="it diverged")
        if task.trial == 5:
            raise ZeroDivisionError("a bug")
        predictions = np.full(8, 3)
        score = Score(top1=float(weights["a"].sum()), top1_se=1.0, loss=1.0, images=8, predictions=predictions)
        return Answer(trial=task.trial, result=TrialResult(weights={"a": weights["a"] + 1}, score=score, seconds=0.1))

    def score(self, task: ScoreTask, weights: dict[str, np.ndarray]) -> ScoreAnswer:
        mark = self.folder / f"score {task.place}"
        tries = len(mark.read_text()) if mark.exists() else 0
        mark.write_text("x" * (tries + 1))
        if task.images == 64 and ((task.place == 1 and tries == 0) or task.place == 9):
            os.kill(os.getpid(), signal.SIGKILL)
        value = task.schedule.keep_ratio("a") + float(weights["a"].sum())
        return ScoreAnswer(place=task.place, value=value)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    found = connect(tiny(Path("unused"), workers=2))
    found.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a module of tests
    yield found
    found.close()


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of one machine that runs already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    with started(command, stdout=DEVNULL, stderr=DEVNULL) as head:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
        head.terminate()
        head.wait(timeout=60)


def workers(connection: Connection, folder: Path, notes: Callbacks, number: int = 2) -> RayWorkers:
    return RayWorkers(
        connection, number=number, gpus=0, arguments=(str(folder),), state={"a": torch.zeros(3)},
        teacher={"search": torch.full((1, 2), 0.5)}, callbacks=notes, worker=Scripted,
    )  # fmt: skip


def task(trial: int, limit: float = 60.0) -> Task:
    schedule = MergeSchedule.uniform(("a",), 0.5, "ltm")
    return Task(trial=trial, schedule=schedule, ib_weight=0.0, seed=trial, steps=None, limit=limit)


def answered(pool: RayWorkers, tasks: list[Task]) -> dict[int, Answer]:
    left, answers = list(tasks), {}
    while len(answers) < len(tasks):
        while left and pool.free():
            one = left.pop(0)
            pool.start(one, one.trial, {"a": torch.full((3,), float(one.trial))})
        for answer in pool.answers():
            assert answer.trial not in answers
            answers[answer.trial] = answer
    return answers


class TestWorkers:
    def test_each_trial_starts_from_its_weights(self, connection: Connection, tmp_path: Path) -> None:
        notes = Notes()
        pool = workers(connection, tmp_path, notes)
        while pool.free() < 2:
            assert pool.answers() == []
        answers = answered(pool, [task(number) for number in range(10, 20)])
        for number, answer in answers.items():
            assert answer.result is not None
            assert answer.result.score.top1 == 3 * number
            assert torch.equal(answer.result.weights["a"], torch.full((3,), number + 1.0))
        assert notes.lines[0] == "starting 2 workers on this machine"
        assert any(line == "2 workers ready on here: cpu, 1 CPU threads each" for line in notes.lines)
        assert len(pool._weights) <= 3, "unused weights are dropped"
        pool.close()

    def test_trials_of_dead_workers_are_repeated(
        self, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ltmsearch.search.workers.ray.HANG_SECONDS", 1.0)
        notes = Notes()
        pool = workers(connection, tmp_path, notes)
        answers = answered(pool, [task(1), task(2), task(3, limit=3.0), task(4), task(6), task(7)])
        pool.close()
        assert {n for n, a in answers.items() if a.result is not None} == {1, 3, 6, 7}
        assert answers[2].failure == "3 workers ended during it, the last on here: its process died"
        assert answers[4].failure == "it diverged"
        assert {n: (tmp_path / str(n)).read_text() for n in (1, 2, 3, 4, 6)} == {
            1: "xx", 2: "xxx", 3: "xx", 4: "x", 6: "x",
        }  # fmt: skip
        given = [line for line in notes.lines if "another worker repeats the trial" in line]
        assert len(given) == 4
        assert "the worker of trial 3 ended on here (it exceeded its time limit)" in "\n".join(given)

    def test_schedules_are_scored_beside_trials(self, connection: Connection, tmp_path: Path) -> None:
        """Scores come in the order of the schedules, also if workers die; answers to trials that end meanwhile wait."""
        notes = Notes()
        pool = workers(connection, tmp_path, notes)
        weights = {"a": torch.full((3,), 2.0)}
        while not pool.free():
            assert pool.answers() == []
        pool.start(task(10), 0, weights)
        schedules = [MergeSchedule.uniform(("a",), ratio, "ltm") for ratio in (1.0, 0.9, 0.8, 0.7, 0.5)]
        values = pool.scores(schedules, 64, 0, weights, limit=60.0)
        assert values == pytest.approx([7.0, 6.9, 6.8, 6.7, 6.5])
        assert (tmp_path / "score 1").read_text() == "xx"
        assert any("a worker that scored a schedule ended on here (its process died)" in line for line in notes.lines)
        answers: list[Answer] = []
        while not answers:
            answers = pool.answers()
        assert [answer.trial for answer in answers] == [10]
        pool.close()

    def test_a_schedule_that_ends_every_worker_ends_the_search(self, connection: Connection, tmp_path: Path) -> None:
        pool = workers(connection, tmp_path, Callbacks())
        schedules = [MergeSchedule.uniform(("a",), 0.5, "ltm")] * 10
        with pytest.raises(
            WorkersLost, match=r"3 workers ended while they scored the same schedule, .*its process died"
        ):
            pool.scores(schedules, 64, 0, {"a": torch.zeros(3)}, limit=60.0)
        pool.close()

    def test_a_programming_error_ends_the_search(self, connection: Connection, tmp_path: Path) -> None:
        pool = workers(connection, tmp_path, Callbacks())
        with pytest.raises(ZeroDivisionError, match="a bug"):
            answered(pool, [task(5)])
        pool.close()

    def test_an_input_error_is_reported_in_one_line(self, connection: Connection, tmp_path: Path) -> None:
        (tmp_path / "refuse").touch()
        pool = workers(connection, tmp_path, Callbacks())
        with pytest.raises(InputError, match=r"^the worker on here: no such folder$"):
            pool.answers()
        pool.close()

    def test_workers_that_never_start_end_the_search(self, connection: Connection, tmp_path: Path) -> None:
        (tmp_path / "die at once").touch()
        pool = workers(connection, tmp_path, Callbacks())
        with pytest.raises(WorkersLost, match="workers end during their start .*; the same command continues"):
            pool.answers()
        pool.close()


def test_a_local_run_listens_on_loopback_only(connection: Connection) -> None:
    own = {os.getpid(), *children(os.getpid())}
    sockets = set()
    for link in (link for pid in own for link in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(OSError):
            sockets.add(os.readlink(link))
    listening = [
        columns[1].rpartition(":")[0]
        for table in ("tcp", "tcp6")
        for columns in (line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:])
        if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets
    ]
    assert len(listening) >= 3, "Ray's own services listen"
    assert set(listening) <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def run(folder: Path, *more: str, kill: str | None = None, **changed: Any) -> Completed:
    """`ltmsearch run` in a process of its own; with `kill`, that of its workers is killed whose title holds it."""
    command = [sys.executable, "-m", "ltmsearch", "run", *tiny_options(out=folder, **changed), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started(command, stdout=PIPE, stderr=PIPE, env=environment) as process:
        deadline = time.monotonic() + 200
        while kill is not None and process.poll() is None and time.monotonic() < deadline:
            busy = [pid for pid in children(process.pid) if kill in title(pid)]
            if busy:
                os.kill(busy[0], signal.SIGKILL)
                kill = None
            time.sleep(0.02)
        out, err = process.communicate(timeout=300)
    assert kill is None, "there was nothing to kill"
    return Completed(command, process.returncode, out, err)


class TestStudies:
    @pytest.mark.parametrize("objective", ["loss", "kl"])
    def test_one_worker_on_a_cluster_gives_the_same_study(self, tmp_path: Path, cluster: str, objective: str) -> None:
        run_study(tiny(tmp_path / "here", objective=objective))
        done = run(tmp_path / "ray", ray_address=cluster, objective=objective)
        assert done.returncode == 0, done.stderr
        assert f"starting 1 worker on the cluster at {cluster}" in done.stderr
        pd.testing.assert_frame_equal(read_equal_columns(tmp_path / "here"), read_equal_columns(tmp_path / "ray"))
        assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "ray")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_workers_end_with_the_driver(self, tmp_path: Path, number: signal.Signals) -> None:
        """Also where signals are ignored at the start, which Ray's processes inherit."""
        options = shlex.join(tiny_options(out=tmp_path / "run", workers=2, trials=1000, proxy_steps=4))
        trap = "trap '' TERM; " if number == signal.SIGTERM else ""
        command = ["sh", "-c", f"{trap}exec {sys.executable} -m ltmsearch run {options}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with started(command, stdout=DEVNULL, stderr=PIPE, env=environment) as driver:
            deadline = time.monotonic() + 200
            while not any("ray::TrialWorker.evaluate" in title(pid) for pid in children(driver.pid)):
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            left = children(driver.pid)
            driver.send_signal(number)
            _, err = driver.communicate(timeout=120)
            assert driver.returncode == {signal.SIGINT: 1, signal.SIGTERM: 143, signal.SIGKILL: -9}[number], err
            while left := {pid for pid in left if is_running(pid)}:
                assert time.monotonic() < deadline, [title(pid) for pid in left]
                time.sleep(0.1)

    def test_a_killed_worker_is_replaced(self, tmp_path: Path) -> None:
        done = run(tmp_path / "run", "--json", kill="ray::TrialWorker.evaluate", workers=2, trials=10, proxy_steps=4)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert "another worker repeats the trial" in done.stderr
        trials = pd.read_csv(tmp_path / "run/trials.csv")
        assert trials.trial.tolist() == list(range(len(trials)))
        assert (trials.state[trials.label != "plain"] == "scored").sum() == 10
        assert len(summary["front"]) >= 1
        assert "waiting for workers" in (tmp_path / "run/times.json").read_text()
