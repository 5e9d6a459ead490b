"""URLs of storages, and their passwords, which are never written."""

import json
import sys
from pathlib import Path

import optuna
import pytest
from support.command_line import tiny

from ltmsearch import StudySettings, run_study
from ltmsearch.config.storage_url import StorageURL, parse_storage_url
from ltmsearch.errors import InputError, without_passwords

SECRET = "pa/ss#w0rd"


class TestURLs:
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
    def test_the_password_is_separated(self, given: str, url: str, password: str | None) -> None:
        assert parse_storage_url(given) == StorageURL(url, password)
        assert parse_storage_url(url) == StorageURL(url, None), "the stored form is stable"

    def test_files_become_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert parse_storage_url("sqlite:///a/b.db").url == f"sqlite:///{tmp_path}/a/b.db"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (SECRET, "must be a URL such as postgresql://USER@HOST/DATABASE, sqlite:///FILE or journal:///PATH/FILE"),
            (f"mysql://u:{SECRET}@h/d", "got a URL that starts with mysql:"),
            (f"postgresql://u:{SECRET}@x@h/d", "characters such as @ written as %40"),
            (f"postgresql://h/d?password={SECRET}", "must contain its password between the user name and the @"),
            (f"postgresql://u:{SECRET}@h", "must name the database"),
            (f"postgresql://u:{SECRET}@h:port/d", "must be a URL"),
            ("sqlite://", "must name a file after sqlite:"),
            ("sqlite:///:memory:", "must name a file after sqlite:"),
            ("journal://studies.log", "must name an absolute path after journal:"),
            ("journal:///", "must name an absolute path"),
        ],
    )
    def test_errors_never_quote_the_url(self, given: str, message: str) -> None:
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
        line = f"ltmsearch run --storage postgresql://me:{SECRET}@host/db --trials 3"
        assert without_passwords(line) == line.replace(SECRET, "***")

    def test_a_server_that_does_not_answer(self, tmp_path: Path) -> None:
        settings = tiny(tmp_path / "run", storage=f"postgresql://u:{SECRET}@127.0.0.1:1/d")
        with pytest.raises(InputError, match=r"the storage postgresql.*:1/d cannot be used: .*refused") as caught:
            run_study(settings)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists(), "refused before anything is written"

    def test_a_missing_database_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(InputError, match=r"needs its driver: pip install 'ltmsearch\[postgres\]'"):
            run_study(tiny(tmp_path / "run", storage="postgresql://u@127.0.0.1:1/d"))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_several_studies_in_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/all.db"
    for name in ("one", "two"):
        run_study(tiny(tmp_path / name, study=name, storage=url, trials=2))
        assert not (tmp_path / name / "study.db").exists()
    storage = optuna.storages.RDBStorage(url)
    assert optuna.get_all_study_names(storage) == ["one", "two"]
