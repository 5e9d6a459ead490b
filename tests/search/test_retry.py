"""Lost connections are retried, nothing is written twice, and the cache of trials matches the database."""

import errno
import shutil
import sqlite3
from collections.abc import Iterator
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
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, OperationalError, PendingRollbackError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from support.command_line import Notes, tiny

from ltmsearch import run_study
from ltmsearch.errors import StorageLost
from ltmsearch.search.storage import RetryingStorage
from ltmsearch.search.storage.errors import JournalError, describe, is_temporary
from ltmsearch.search.storage.optuna_private import set_system_attr, study_id, study_storage, system_attrs, trial_id
from ltmsearch.search.storage.retry import PAUSES

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
AWAY = OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused"))


def wrapped(error: Exception) -> StorageInternalError:
    """Wrap an error as Optuna does."""
    outer = StorageInternalError("An exception is raised during the commit.")
    outer.__cause__ = error
    return outer


class Failing(InMemoryStorage):
    """Fails in the next call of a method, before or after its work."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, str] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            moment = self.fails.pop(name, "")
            if moment == "before":
                raise wrapped(AWAY)
            result = found(*args, **kwargs)
            if moment == "after":
                raise wrapped(AWAY)
            return result

        return called


def retrying(storage: BaseStorage, notes: Notes | None = None, **options: Any) -> RetryingStorage:
    options = {"sleep": lambda seconds: None, **options}
    return RetryingStorage(storage, tiny(Path("run")), notes or Notes(), **options)


def locked(code: int) -> OperationalError:
    error = sqlite3.OperationalError("message of SQLite")
    error.sqlite_errorcode = code
    return OperationalError("", {}, error)


def refused(message: str) -> OperationalError:
    return OperationalError("", {}, psycopg.OperationalError(f"connection failed: FATAL: {message}"))


def of_class(error: type[Exception]) -> OperationalError:
    return OperationalError("", {}, error("message of the server"))


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            AWAY,
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
    def test_temporary(self, error: Exception) -> None:
        assert is_temporary(error)
        assert is_temporary(wrapped(error))

    @pytest.mark.parametrize(
        "error",
        [
            locked(sqlite3.SQLITE_FULL),
            locked(sqlite3.SQLITE_CORRUPT),
            refused('password authentication failed for user "x"'),
            refused('database "x" does not exist'),
            of_class(psycopg.errors.DiskFull),
            of_class(psycopg.errors.InvalidPassword),
            ProgrammingError("", {}, psycopg.errors.InsufficientPrivilege("permission denied for table trials")),
            ValueError("something else"),
            StorageInternalError("without a cause"),
        ],
        ids=str,
    )
    def test_permanent(self, error: Exception) -> None:
        assert not is_temporary(error)
        assert not is_temporary(wrapped(error))

    @pytest.mark.parametrize(
        ("number", "temporary"), [(errno.ESTALE, True), (errno.ENOENT, True), (errno.ENOSPC, False)]
    )
    def test_journal(self, number: int, temporary: bool) -> None:
        error = JournalError.from_os_error(OSError(number, "message of the system", "studies.log"))
        assert is_temporary(error) == temporary

    @pytest.mark.parametrize(("code", "temporary"), [(sqlite3.SQLITE_BUSY, True), (sqlite3.SQLITE_FULL, False)])
    def test_a_consequence_counts_as_its_cause(self, code: int, temporary: bool) -> None:
        with pytest.raises(PendingRollbackError) as caught:
            try:
                raise locked(code)
            except OperationalError:
                raise PendingRollbackError("Can't reconnect until …")  # noqa: B904 (as in Optuna)
        assert is_temporary(wrapped(caught.value)) == temporary
        assert describe(wrapped(caught.value), None) == "message of SQLite"

    def test_the_message_is_one_line_without_the_password(self) -> None:
        error = wrapped(OperationalError("SELECT 'pw'", {"x": "pw"}, psycopg.OperationalError("no pw\nfor you pw\n")))
        assert describe(error, SecretStr("pw")) == "no ***"
        assert describe(StorageInternalError(""), None) == "StorageInternalError"


class TestRetries:
    @pytest.mark.parametrize("failures", [7, 100])
    def test_pauses_grow_for_about_five_minutes(self, failures: int) -> None:
        storage, notes, pauses = Failing(), Notes(), []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) < failures:
                storage.fails["get_all_studies"] = "before"

        storage.fails["get_all_studies"] = "before"
        waiting = retrying(storage, notes, sleep=sleep)
        if failures == 7:
            assert waiting.get_all_studies() == []
            assert notes.lines.pop() == "the storage in run answers again after 91 s"
        else:
            for _ in range(2):  # the second call happens while the run ends
                with pytest.raises(StorageInternalError):
                    waiting.get_all_studies()
                storage.fails["get_all_studies"] = "before"
            assert 280 <= sum(pauses) <= 320
        assert pauses == list(PAUSES[:failures])
        wait = "the storage in run does not answer: connection refused; trying again in"
        assert notes.lines == [f"{wait} {pause:g} s" for pause in pauses]

    def test_ctrl_c_ends_them(self) -> None:
        def interrupted(seconds: float) -> None:
            raise KeyboardInterrupt

        storage = Failing()
        waiting = retrying(storage, sleep=interrupted)
        for expected in (KeyboardInterrupt, StorageInternalError):
            storage.fails["get_all_studies"] = "before"
            with pytest.raises(expected):
                waiting.get_all_studies()

    def test_a_finished_trial_cannot_be_changed(self) -> None:
        storage = Failing()
        waiting = retrying(storage)
        study = optuna.create_study(storage=waiting, directions=DIRECTIONS)
        trial = study.ask()
        study.tell(trial, [1.0, 2.0])
        storage.fails["set_trial_state_values"] = "before"
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            waiting.set_trial_state_values(trial_id(trial), TrialState.COMPLETE, [1.0, 3.0])


@pytest.mark.parametrize("moment", ["before", "after"])
class TestOnce:
    """A call that failed before its work, or whose answer was lost, leaves the same study."""

    @pytest.mark.parametrize(
        "method",
        [
            "create_new_study", "create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr",
            "set_trial_system_attr", "set_study_user_attr", "get_all_trials", "get_study_id_from_name",
        ],
    )  # fmt: skip
    def test_a_study_is_the_same(self, moment: str, method: str) -> None:
        storage, notes = Failing(), Notes()

        def fail() -> None:
            storage.fails[method] = moment

        fail()
        study = optuna.create_study(
            storage=retrying(storage, notes), study_name="x", directions=DIRECTIONS, load_if_exists=True
        )
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
        trials = study.trials
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3 + [TrialState.FAIL]
        assert [trial.params["x"] for trial in trials][1::2] == [0.1, 0.3]
        assert [t.values for t in trials[:3]] == [[t.params["x"], -t.params["x"]] for t in trials[:3]]
        assert study.user_attrs == {"done": True}
        assert any("does not answer" in line for line in notes.lines)

    def test_copied_trials_and_a_deleted_study(self, moment: str) -> None:
        storage = Failing()
        waiting = retrying(storage)
        study = optuna.create_study(storage=waiting, study_name="x", directions=DIRECTIONS)
        for number in range(3):
            storage.fails["create_new_trial"] = moment
            study.add_trial(create_trial(values=[number, 0.0]))
        assert [trial.values for trial in study.trials] == [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
        storage.fails["delete_study"] = moment
        optuna.delete_study(study_name="x", storage=waiting)
        assert waiting.get_all_studies() == []


class TestCache:
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/study.db"

    @pytest.fixture
    def database(self, url: str) -> Iterator[RDBStorage]:
        storage = RDBStorage(url)
        yield storage
        storage.engine.dispose()

    @pytest.fixture
    def study(self, database: RDBStorage) -> optuna.Study:
        return optuna.create_study(storage=retrying(database), directions=DIRECTIONS, study_name="s")

    @pytest.fixture
    def other(self, study: optuna.Study, url: str) -> Iterator[optuna.Study]:
        """The study in another process."""
        storage = RDBStorage(url)
        yield optuna.load_study(study_name="s", storage=storage)
        storage.engine.dispose()

    def test_it_matches_the_database_after_every_write(self, study: optuna.Study, other: optuna.Study) -> None:
        def same() -> None:
            assert study.get_trials() == other.get_trials()

        same()
        study.enqueue_trial({"a": 3}, user_attrs={"label": "queued"})
        same()
        first, second = study.ask(), study.ask()
        same()
        assert [first.suggest_int("a", 0, 5), second.suggest_int("a", 0, 5)][0] == 3
        same()
        first.set_user_attr("gflops", 1.5)
        second.set_constraint("budget", 0.5)
        same()
        study.tell(second, state=TrialState.PRUNED)
        other.ask()  # trials of other processes are found, in order
        study.tell(first, [70.0, 1.5])
        study.ask()
        same()
        assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "PRUNED", "RUNNING", "RUNNING"]

    def test_only_changed_trials_are_read(self, study: optuna.Study, database: RDBStorage) -> None:
        running, statements = [study.ask() for _ in range(20)], []
        study.get_trials()
        event.listen(database.engine, "after_cursor_execute", lambda *args: statements.append(args[2]))
        running[7].set_user_attr("gflops", 1.5)
        statements.clear()
        study.get_trials()
        first = len(statements)
        study.get_trials()
        assert (first, len(statements) - first) == (first, 1)
        assert first <= 7, "one trial, with its parameters, values and attributes"


def test_private_attributes_of_optuna() -> None:
    """They exist, and agree with Optuna's public methods."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    assert study_storage(study) is storage
    assert study_id(study) == storage.get_study_id_from_name("s")
    set_system_attr(study, "name", "value")
    assert system_attrs(study)["name"] == storage.get_study_system_attrs(study_id(study))["name"] == "value"
    expected = storage.get_trial_id_from_study_id_trial_number(study_id(study), 0)
    assert trial_id(trial) == trial_id(study.trials[0]) == expected


def test_a_locked_file_is_retried(tmp_path: Path) -> None:
    notes = Notes()
    storage = RDBStorage(f"sqlite:///{tmp_path}/study.db", {"connect_args": {"timeout": 0}})
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    study = optuna.create_study(storage=retrying(storage, notes, sleep=lambda _: other.execute("ROLLBACK")))
    other.execute("BEGIN EXCLUSIVE")
    study.set_user_attr("kept", True)
    other.close()
    assert study.user_attrs == {"kept": True}
    assert notes.lines[0] == "the storage in run does not answer: database is locked; trying again in 1 s"
    storage.engine.dispose()


@pytest.mark.long
@pytest.mark.parametrize(("code", "retries"), [(sqlite3.SQLITE_BUSY, 3), (sqlite3.SQLITE_FULL, 0)])
def test_a_run_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, retries: int) -> None:
    monkeypatch.setattr("ltmsearch.search.storage.retry.PAUSES", (0.0, 0.0, 0.0))

    def failing(*_: Any, **__: Any) -> None:
        raise wrapped(locked(code))

    monkeypatch.setattr(RDBStorage, "set_trial_user_attr", failing)
    notes = Notes()
    with pytest.raises(StorageLost, match=r"run/study.db was lost: message of SQLite; the same command continues"):
        run_study(tiny(tmp_path / "run"), notes)
    assert sum("does not answer" in line for line in notes.lines) == retries
    assert not (tmp_path / "run/driver.json").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_removed_database_ends_the_search(tmp_path: Path, replaced: bool) -> None:
    """SQLite itself would go on, and all that it writes would be lost."""
    file = tmp_path / "study.db"
    opened = optuna.storages.RDBStorage(f"sqlite:///{file}")
    storage = retrying(opened)
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=1.0))
    file.rename(tmp_path / "moved")
    if replaced:
        shutil.copy(tmp_path / "moved", file)
    with pytest.raises(StorageLost, match="study.db was removed or replaced while it was in use; put it back"):
        study.ask()
    (tmp_path / "moved").replace(file)
    study.ask()
    assert len(study.trials) == 2
    opened.engine.dispose()
