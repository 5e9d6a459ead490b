"""Studies in a real PostgreSQL: the same trials as in SQLite, no password anywhere, and a server that is killed."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psycopg
import pytest
from support.command_line import Interrupt, Notes
from support.command_line import tiny_vit as whole
from support.finished import assert_pages_are_served
from support.postgres import Postgres
from support.processes import Completed, completed
from support.records import read_equal_columns

from ltmsearch import run_study
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.errors import InputError, StorageLost
from ltmsearch.search.storage import find_study, open_storage
from ltmsearch.search.storage.optuna_private import system_attrs
from ltmsearch.search.trial import Evaluator

SECRET = "pa/ss#w0rd"


def tiny(run: Path, **changes: Any) -> StudySettings:
    return whole(run, **{"trials": 3, **changes})


def call(*arguments: str) -> Completed:
    return completed([sys.executable, "-m", "ltmsearch", *arguments], check=False)


@pytest.mark.slow
def test_a_study_is_the_same_as_in_sqlite(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(tiny(tmp_path / "file"))
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(tmp_path / "run", study="same", storage=postgres.url(password=True)), Interrupt(7))
    monkeypatch.setenv("PGPASSWORD", postgres.password)  # read by libpq if the URL has none
    run_study(tiny(tmp_path / "run", study="same", storage=postgres.url()))
    pd.testing.assert_frame_equal(read_equal_columns(tmp_path / "file"), read_equal_columns(tmp_path / "run"))
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert postgres.password.encode() not in kept
    storage = open_storage(ResolvedSettings.load(tmp_path / "run/settings.yaml"), tmp_path, existing=True)
    study = find_study(storage, "same")
    assert study is not None
    attributes = [study.user_attrs, system_attrs(study)]
    attributes += [attrs for trial in study.trials for attrs in (trial.user_attrs, trial.system_attrs)]
    assert postgres.password not in json.dumps(attributes)
    tighter = run_study(tiny(tmp_path / "run", study="same", storage=postgres.url(), budget_gflops=0.0042))
    assert all(record.gflops <= 0.25 for record in tighter.front)
    assert optuna.get_all_study_names(storage) == ["same #2"]


@pytest.mark.slow
def test_only_the_dashboard_needs_the_database(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    run_study(tiny(tmp_path / "run", study="served", storage=postgres.url(password=True)))
    for command in (("front", "--json"), ("export",)):
        done = call(command[0], str(tmp_path / "run"), *command[1:])
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/export").is_dir()
    refused = call("dashboard", str(tmp_path / "run"), "--port", "0")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: the storage postgresql+psycopg://searcher@127.0.0.1:")
    assert refused.stderr.count("\n") == 1
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    assert_pages_are_served(tmp_path / "run", name="served", trials=4)


@pytest.mark.slow
def test_a_lost_server_ends_the_run_in_one_line(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(tmp_path / "run", study="lost", storage=postgres.url(password=True))
    original, calls = Evaluator.evaluate, [0]

    def administrate(password: str, *commands: str) -> None:
        address = f"host=127.0.0.1 port={postgres.port} user=searcher dbname=postgres password={password}"
        with psycopg.connect(address, autocommit=True) as connection:
            for command in commands:
                connection.execute(command)  # type: ignore[call-overload]

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:  # the server ends all connections and refuses new ones
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            administrate(postgres.password, "ALTER ROLE searcher PASSWORD 'another'", others)
        return original(*args, **kwargs)

    message = "the storage .* was lost: .*; the same command continues"
    with monkeypatch.context() as patch, pytest.raises(StorageLost, match=message) as caught:
        patch.setattr(Evaluator, "evaluate", cut_off)
        run_study(settings)
    administrate("another", f"ALTER ROLE searcher PASSWORD '{postgres.password}'")
    assert postgres.password not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(run_study(settings).trials) >= 4


def test_a_wrong_password_and_a_database_without_a_study(postgres: Postgres, tmp_path: Path) -> None:
    wrong = tiny(
        tmp_path / "run", storage=postgres.url().replace("@", f":{SECRET}@".replace("/", "%2F").replace("#", "%23"))
    )
    with pytest.raises(InputError, match="password authentication failed") as caught:
        run_study(wrong)
    assert SECRET not in str(caught.value)
    with pytest.raises(InputError, match="no password was given: put it into --storage of `run`, PGPASSWORD"):
        run_study(tiny(tmp_path / "run", storage=postgres.url()))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_server_is_awaited(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(tiny(tmp_path / "file"))
    original, calls, notes = Evaluator.evaluate, [0], Notes()

    def killing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            postgres.kill()
            threading.Timer(3.5, postgres.start).start()
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", killing)
        run_study(tiny(tmp_path / "run", study="killed", storage=postgres.url(password=True)), notes)
    waits = [line for line in notes.lines if "does not answer: " in line]
    assert [line.rpartition("; ")[2] for line in waits] == [f"trying again in {2**n} s" for n in range(len(waits))]
    assert 2 <= len(waits) <= 4
    assert any("answers again after " in line for line in notes.lines)
    assert not any(postgres.password in line or "\n" in line for line in notes.lines)
    pd.testing.assert_frame_equal(read_equal_columns(tmp_path / "file"), read_equal_columns(tmp_path / "run"))
