"""Where studies are kept: addresses, passwords that nobody keeps, and a real PostgreSQL."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.sizes import TINY

from ltmsearch import StudySettings, run_study
from ltmsearch.config.storage_url import Address, read_address
from ltmsearch.errors import InputError, without_passwords

SECRET = "pa/ss#w0rd"


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG starts a browser; its own tests do that."""
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


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
            ("journal:///shared/../a disk/s.log", "journal:///a disk/s.log", None),
            ("journal:////shared/s.log", "journal:///shared/s.log", None),
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
            (SECRET, "must be a URL such as postgresql://USER@HOST/DATABASE, sqlite:///FILE or journal:///PATH/FILE"),
            (f"mysql://u:{SECRET}@h/d", "begins with mysql: which is not supported"),
            (f"postgresql://u:{SECRET}@x@h/d", "characters such as @ written as %40"),
            (f"postgresql://h/d?password={SECRET}", "must hold a password between the user's name and the @"),
            (f"postgresql://u:{SECRET}@h", "must name the database"),
            (f"postgresql://u:{SECRET}@h:port/d", "must be a URL"),
            ("sqlite://", "must be the address of a file"),
            ("sqlite:///:memory:", "must be the address of a file"),
            ("journal://studies.log", "must hold the whole path of a file where it begins with journal:"),
            ("journal:///", "must hold the whole path of a file"),
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
