"""Storages that go away and come back: what is waited for, how it is told, and that nothing is there twice."""

import errno
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import psycopg.errors
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from pydantic import SecretStr
from sqlalchemy.exc import DatabaseError, OperationalError, PendingRollbackError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from support.command_line import Notes, tiny

from ltmsearch import run_study
from ltmsearch.errors import StorageLost
from ltmsearch.search.storage import PatientStorage
from ltmsearch.search.storage.errors import JournalFailed, may_pass, reason
from ltmsearch.search.storage.retry import PAUSES

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
AWAY = OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused"))


def wrapped(error: Exception) -> StorageInternalError:
    """As Optuna hands errors on."""
    outer = StorageInternalError("An exception is raised during the commit.")
    outer.__cause__ = error
    return outer


class Failing(InMemoryStorage):
    """Fails in the next call of a method, before it is done or behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, str] = {}
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            how = self.fails.pop(name, "")
            if how == "before":
                raise wrapped(AWAY)
            given = found(*args, **kwargs)
            if how == "behind":
                raise wrapped(AWAY)
            return given

        return called


def patient(storage: BaseStorage, notes: Notes | None = None, **options: Any) -> PatientStorage:
    options = {"sleep": lambda seconds: None, **options}
    return PatientStorage(  # type: ignore[abstract]
        storage, "the storage", (notes or Notes()).note, lambda error: reason(error, None), **options
    )


def locked(code: int) -> OperationalError:
    error = sqlite3.OperationalError("told by SQLite")
    error.sqlite_errorcode = code
    return OperationalError("", {}, error)


def refused(message: str) -> OperationalError:
    return OperationalError("", {}, psycopg.OperationalError(f"connection failed: FATAL: {message}"))


def of_class(error: type[Exception]) -> OperationalError:
    return OperationalError("", {}, error("told by the server"))


class TestWhatMayPass:
    @pytest.mark.parametrize(
        "error",
        [
            AWAY,
            locked(sqlite3.SQLITE_BUSY),
            locked(sqlite3.SQLITE_BUSY_SNAPSHOT),
            locked(sqlite3.SQLITE_LOCKED),
            refused("the database system is starting up"),
            refused("sorry, too many clients already"),
            of_class(psycopg.errors.AdminShutdown),
            of_class(psycopg.errors.ConnectionFailure),
            of_class(psycopg.errors.DeadlockDetected),
            PoolTimeout("all connections are in use"),
            DatabaseError("", {}, psycopg.DatabaseError("closed"), connection_invalidated=True),
        ],
        ids=str,
    )
    def test_a_database(self, error: Exception) -> None:
        assert may_pass(error)
        assert may_pass(wrapped(error))

    @pytest.mark.parametrize(
        "error",
        [
            locked(sqlite3.SQLITE_FULL),
            locked(sqlite3.SQLITE_READONLY),
            locked(sqlite3.SQLITE_CORRUPT),
            refused('password authentication failed for user "x"'),
            refused("no password supplied"),
            refused('database "x" does not exist'),
            of_class(psycopg.errors.DiskFull),
            of_class(psycopg.errors.InvalidPassword),
            ProgrammingError("", {}, psycopg.errors.InsufficientPrivilege("permission denied for table trials")),
            ValueError("something else"),
            StorageInternalError("without a cause"),
        ],
        ids=str,
    )
    def test_what_stays(self, error: Exception) -> None:
        assert not may_pass(error)
        assert not may_pass(wrapped(error))

    @pytest.mark.parametrize(
        ("number", "passes"),
        [(errno.ESTALE, True), (errno.ENOENT, True), (errno.EIO, True), (errno.ENOSPC, False), (errno.EROFS, False)],
    )
    def test_a_journal(self, number: int, passes: bool) -> None:
        assert may_pass(JournalFailed.of(OSError(number, "told by the system", "studies.log"))) == passes

    @pytest.mark.parametrize(("code", "passes"), [(sqlite3.SQLITE_BUSY, True), (sqlite3.SQLITE_FULL, False)])
    def test_what_follows_from_another_error_goes_by_that(self, code: int, passes: bool) -> None:
        with pytest.raises(PendingRollbackError) as caught:
            try:
                raise locked(code)
            except OperationalError:
                raise PendingRollbackError("Can't reconnect until …")  # noqa: B904 (as Optuna comes to it)
        assert may_pass(wrapped(caught.value)) == passes
        assert reason(wrapped(caught.value), None) == "told by SQLite"

    def test_the_reason_is_one_line_without_the_password(self) -> None:
        error = wrapped(OperationalError("SELECT 'pw'", {"x": "pw"}, psycopg.OperationalError("no pw\nfor you pw\n")))
        assert reason(error, SecretStr("pw")) == "no ***"
        assert reason(StorageInternalError(""), None) == "StorageInternalError"


class TestWaiting:
    def test_pauses_grow_and_each_is_told(self) -> None:
        storage, notes, pauses = Failing(), Notes(), []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) < 7:
                storage.fails["get_all_studies"] = "before"

        storage.fails["get_all_studies"] = "before"
        assert patient(storage, notes, sleep=sleep).get_all_studies() == []
        assert pauses == [1, 2, 4, 8, 16, 30, 30]
        assert notes.lines == [
            *(f"the storage does not answer: connection refused; trying again in {pause:g} s" for pause in pauses),
            "the storage answers again after 91 s",
        ]

    def test_about_five_minutes_and_then_no_more(self) -> None:
        storage, pauses = Failing(), []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            storage.fails["get_all_studies"] = "before"

        storage.fails["get_all_studies"] = "before"
        waiting = patient(storage, sleep=sleep)
        for _ in range(2):  # the second time is while the run ends
            with pytest.raises(StorageInternalError):
                waiting.get_all_studies()
            storage.fails["get_all_studies"] = "before"
        assert tuple(pauses) == PAUSES
        assert 280 <= sum(pauses) <= 320

    def test_ctrl_c_while_it_waits_ends_all_waiting(self) -> None:
        def interrupted(seconds: float) -> None:
            raise KeyboardInterrupt

        storage = Failing()
        waiting = patient(storage, sleep=interrupted)
        for expected in (KeyboardInterrupt, StorageInternalError):
            storage.fails["get_all_studies"] = "before"
            with pytest.raises(expected):
                waiting.get_all_studies()

    def test_what_stays_is_not_waited_for(self) -> None:
        class Full(InMemoryStorage):
            def get_all_studies(self) -> Any:
                raise locked(sqlite3.SQLITE_FULL)

        with pytest.raises(OperationalError):
            patient(Full(), sleep=pytest.fail).get_all_studies()

    def test_every_method_of_optunas_storages_waits(self) -> None:
        public = {name for name, value in vars(BaseStorage).items() if callable(value) and not name.startswith("_")}
        assert len(public) > 20
        assert public <= set(vars(PatientStorage))


@pytest.mark.parametrize("how", ["before", "behind"])
class TestOnce:
    """Whether a call failed before it was done or its answer was lost: the study is the same."""

    @pytest.mark.parametrize(
        "method",
        [
            "create_new_study", "create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr",
            "set_trial_system_attr", "set_study_user_attr", "get_all_trials", "get_study_id_from_name",
        ],
    )  # fmt: skip
    def test_a_study_is_the_same(self, how: str, method: str) -> None:
        storage, notes = Failing(), Notes()
        waiting = patient(storage, notes)

        def fail() -> None:
            storage.fails[method] = how

        fail()
        study = optuna.create_study(storage=waiting, study_name="x", directions=DIRECTIONS, load_if_exists=True)
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        for number in range(4):
            if number % 2:
                fail()
                study.enqueue_trial({"x": number / 10}, user_attrs={"number": number})
            fail()
            trial = study.ask()
            fail()
            x = trial.suggest_float("x", 0, 1)
            trial.set_user_attr("seen", x)
            trial.set_constraint("cost", -x)
            fail()
            study.tell(trial, [x, -x]) if number < 3 else study.tell(trial, state=TrialState.FAIL)
        study.set_user_attr("done", True)
        storage.fails.clear()
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.COMPLETE] * 3 + [TrialState.FAIL]
        assert [trial.params["x"] for trial in study.trials][1::2] == [0.1, 0.3]
        assert [trial.values for trial in study.trials[:3]] == [
            [t.params["x"], -t.params["x"]] for t in study.trials[:3]
        ]
        assert study.user_attrs == {"done": True}
        assert any("answers again" in line for line in notes.lines)

    def test_finished_trials_that_are_copied(self, how: str) -> None:
        storage = Failing()
        waiting = patient(storage)
        study = optuna.create_study(storage=waiting, study_name="x", directions=DIRECTIONS)
        for number in range(3):
            storage.fails["create_new_trial"] = how
            study.add_trial(create_trial(values=[number, 0.0]))
        assert [trial.values for trial in study.trials] == [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
        storage.fails["delete_study"] = how
        optuna.delete_study(study_name="x", storage=waiting)
        assert waiting.get_all_studies() == []


def test_a_told_trial_is_not_told_something_else(tmp_path: Path) -> None:
    storage = Failing()
    waiting = patient(storage)
    study = optuna.create_study(storage=waiting, directions=DIRECTIONS)
    trial = study.ask()
    study.tell(trial, [1.0, 2.0])
    storage.fails["set_trial_state_values"] = "before"
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        waiting.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0, 3.0])


class TestSQLite:
    def test_a_file_that_another_process_has_locked(self, tmp_path: Path) -> None:
        url, notes = f"sqlite:///{tmp_path}/study.db", Notes()
        storage = RDBStorage(url, {"connect_args": {"timeout": 0}})
        other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
        study = optuna.create_study(storage=patient(storage, notes, sleep=lambda _: other.execute("ROLLBACK")))
        other.execute("BEGIN EXCLUSIVE")
        study.set_user_attr("kept", True)
        other.close()
        assert study.user_attrs == {"kept": True}
        assert notes.lines[0] == "the storage does not answer: database is locked; trying again in 1 s"
        storage.engine.dispose()

    @pytest.mark.parametrize(("how", "lines"), [("locked", 3), ("full", 0)])
    def test_a_run_ends_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, lines: int
    ) -> None:
        monkeypatch.setattr("ltmsearch.search.storage.retry.PAUSES", (0.0, 0.0, 0.0))
        error = locked(sqlite3.SQLITE_BUSY if how == "locked" else sqlite3.SQLITE_FULL)

        def failing(*_: Any, **__: Any) -> None:
            raise wrapped(error)

        monkeypatch.setattr(RDBStorage, "set_trial_user_attr", failing)
        notes = Notes()
        with pytest.raises(StorageLost, match=r"run/study.db was lost: told by SQLite; the same command continues"):
            run_study(tiny(tmp_path / "run"), notes)
        assert sum("does not answer" in line for line in notes.lines) == lines
        assert not (tmp_path / "run/driver.json").exists()
