"""Where studies are kept: addresses, passwords that nobody keeps, and a real PostgreSQL."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psycopg
import pytest
from conftest import TINY, Interrupt
from postgres import Postgres

from ltmsearch import StudySettings, run_study
from ltmsearch.address import Address, read_address
from ltmsearch.cli.log import without_passwords
from ltmsearch.errors import InputError, StorageLost
from ltmsearch.settings import ResolvedSettings
from ltmsearch.storage import find_study, open_storage
from ltmsearch.trial import Evaluator

SECRET = "pa/ss#w0rd"


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG starts a browser; its own tests do that."""
    monkeypatch.setattr("ltmsearch.drawing._write_png", lambda *_: None)


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ltmsearch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def tiny(run: Path, **changes: Any) -> StudySettings:
    return StudySettings.make("test", **{**TINY, "out": str(run), "trials": 3, **changes})


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "url", "password"),
        [
            ("postgresql://u@h/d", "postgresql+psycopg://u@h/d", None),
            ("postgres://u:p@h:5/d?sslmode=require", "postgresql+psycopg://u@h:5/d?sslmode=require", "p"),
            ("postgresql+psycopg2://u:p@[::1]/d", "postgresql+psycopg2://u@[::1]/d", "p"),
            (f"postgresql://u:{SECRET}@h/d", "postgresql+psycopg://u@h/d", SECRET),
            ("postgresql://u%40server:p%40ss@h/d", "postgresql+psycopg://u%40server@h/d", "p@ss"),
            ("postgresql:///d", "postgresql+psycopg:///d", None),
        ],
    )
    def test_the_password_is_taken_out(self, given: str, url: str, password: str | None) -> None:
        assert read_address(given) == Address(url, password)
        assert read_address(url) == Address(url, None), "what is kept is read again as it is"

    def test_files_become_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert read_address("sqlite:///a/b.db").url == f"sqlite:///{tmp_path}/a/b.db"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (SECRET, "must be a URL such as postgresql://USER@HOST/DATABASE or sqlite:///FILE"),
            (f"mysql://u:{SECRET}@h/d", "begins with mysql: which is not supported"),
            (f"postgresql://u:{SECRET}@x@h/d", "characters such as @ written as %40"),
            (f"postgresql://h/d?password={SECRET}", "must hold a password between the user's name and the @"),
            (f"postgresql://u:{SECRET}@h", "must name the database"),
            (f"postgresql://u:{SECRET}@h:port/d", "must be a URL"),
            ("sqlite://", "must be the address of a file"),
            ("sqlite:///:memory:", "must be the address of a file"),
        ],
    )
    def test_what_is_none_is_told_without_repeating_it(self, given: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            StudySettings.make("run", backbone="mobilevit_xxs", budget_gflops=0.27, storage=given)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)


class TestPasswords:
    def test_settings_use_them_and_never_write_them(self, tmp_path: Path) -> None:
        settings = tiny(tmp_path, storage=f"postgresql://u:{SECRET}@h/d").resolved("cpu")
        assert settings.storage_password is not None
        assert settings.storage_password.get_secret_value() == SECRET
        for text in (settings.to_yaml(), repr(settings), str(settings.model_dump())):
            assert SECRET not in text
        assert "postgresql+psycopg://u@h/d" in settings.to_yaml()
        assert "storage_password" not in settings.to_yaml()
        assert SECRET not in json.dumps(settings.public())

    def test_a_logged_command_line_has_no_password(self) -> None:
        line = f"ltmsearch run --storage postgresql://me:{SECRET}@host/db --trials 3"
        assert without_passwords(line) == line.replace(SECRET, "***")

    def test_nobody_answers(self, tmp_path: Path) -> None:
        settings = tiny(tmp_path / "run", storage=f"postgresql://u:{SECRET}@127.0.0.1:1/d")
        with pytest.raises(InputError, match=r"the storage postgresql.*:1/d cannot be used: .*refused") as caught:
            run_study(settings)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists(), "refused before anything is written"

    def test_a_driver_that_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(InputError, match=r"needs its driver: pip install 'ltmsearch\[postgres\]'"):
            run_study(tiny(tmp_path / "run", storage="postgresql://u@127.0.0.1:1/d"))
        assert not (tmp_path / "run").exists()


def test_several_studies_in_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/all.db"
    for name in ("one", "two"):
        run_study(tiny(tmp_path / name, study=name, storage=url))
        assert not (tmp_path / name / "study.db").exists()
    storage = optuna.storages.RDBStorage(url)
    assert optuna.get_all_study_names(storage) == ["one", "two"]
    with pytest.raises(InputError, match=r"holds a study one with trials already, but .*/other has no shared weights"):
        run_study(tiny(tmp_path / "other", study="one", storage=url))
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match=r"kept in the storage sqlite:///.*all.db, but got no --storage"):
        run_study(tiny(tmp_path / "one", study="one"))
    assert not (tmp_path / "one/study.db").exists()


class TestPostgres:
    def test_a_study_is_the_same_in_it_as_in_a_file(
        self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_study(tiny(tmp_path / "file"))
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(tmp_path / "run", study="same", storage=postgres.url(password=True)), Interrupt(7))
        monkeypatch.setenv("PGPASSWORD", postgres.password)  # libpq's own way, where the URL holds none
        run_study(tiny(tmp_path / "run", study="same", storage=postgres.url()))
        trials, others = (pd.read_csv(tmp_path / name / "trials.csv") for name in ("file", "run"))
        pd.testing.assert_frame_equal(trials.drop(columns="seconds"), others.drop(columns="seconds"))
        kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
        assert postgres.password.encode() not in kept
        storage = open_storage(ResolvedSettings.load(tmp_path / "run/settings.yaml"), tmp_path, existing=True)
        study = find_study(storage, "same")
        assert study is not None
        attributes = [study.user_attrs, study._storage.get_study_system_attrs(study._study_id)]
        attributes += [attrs for trial in study.trials for attrs in (trial.user_attrs, trial.system_attrs)]
        assert postgres.password not in json.dumps(attributes)
        tighter = run_study(tiny(tmp_path / "run", study="same", storage=postgres.url(), budget_gflops=0.25))
        assert all(record.gflops <= 0.25 for record in tighter.front)
        assert optuna.get_all_study_names(storage) == ["same #2"]

    @pytest.mark.slow
    def test_its_pages_are_served_and_front_and_export_need_no_database(
        self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        command = [sys.executable, "-m", "ltmsearch", "dashboard", str(tmp_path / "run"), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = process.stdout.readline().split()[4]
            root, _, number = address.partition("/dashboard/studies/")
            with urllib.request.urlopen(f"{root}/api/studies/{number}", timeout=30) as answer:
                told = json.load(answer)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        assert told["name"] == "served"
        assert [trial["number"] for trial in told["trials"]] == [0, 1, 2, 3]
        assert all(trial["note"]["body"] and trial["artifacts"] for trial in told["trials"])

    def test_a_server_that_goes_away_is_told_in_one_line(
        self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            if calls[0] == 2:  # what a server does to its clients when it stops, and it lets none in again
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
        assert len(run_study(settings).records) >= 4

    def test_a_wrong_password_and_a_database_without_a_study(self, postgres: Postgres, tmp_path: Path) -> None:
        wrong = tiny(
            tmp_path / "run", storage=postgres.url().replace("@", f":{SECRET}@".replace("/", "%2F").replace("#", "%23"))
        )
        with pytest.raises(InputError, match="password authentication failed") as caught:
            run_study(wrong)
        assert SECRET not in str(caught.value)
        with pytest.raises(
            InputError, match="no password was given: it may stand in --storage of `run`, in PGPASSWORD"
        ):
            run_study(tiny(tmp_path / "run", storage=postgres.url()))
        assert not (tmp_path / "run").exists()
