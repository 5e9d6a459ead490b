"""Studies in a journal on a shared disk: the same trials as in SQLite, half lines, damage, and foreign files."""

import errno
import os
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.command_line import Interrupt, Notes
from support.command_line import tiny_vit as whole
from support.finished import assert_pages_are_served
from support.records import read_equal_columns

from ltmsearch import run_study
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError, StorageLost
from ltmsearch.search.storage import find_study, open_storage
from ltmsearch.search.storage.errors import JournalError
from ltmsearch.search.storage.journal import Journal
from ltmsearch.search.trial import Evaluator

HALF = b'{"op_code":8,"worker_id":"0b1c-1403'


def tiny(run: Path, **changes: Any) -> StudySettings:
    return whole(run, **{"trials": 3, "storage": f"journal://{run.parent}/studies.log", **changes})


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def some_journal(path: Path) -> int:
    """Write a study of three trials with Optuna alone; return the size of the file."""
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="some")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return path.stat().st_size


class TestStudies:
    @pytest.mark.slow
    def test_a_study_is_the_same_as_in_sqlite(self, tmp_path: Path) -> None:
        run_study(whole(tmp_path / "file", trials=3))
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(tmp_path / "run", study="same"), Interrupt(7))
        append(tmp_path / "studies.log", HALF)
        notes = Notes()
        run_study(tiny(tmp_path / "run", study="same"), notes)
        removed = (
            f"removed half a line of {len(HALF)} bytes at the end of {tmp_path}/studies.log: its writer was killed"
        )
        assert [line for line in notes.lines if "half a line" in line] == [removed]
        pd.testing.assert_frame_equal(read_equal_columns(tmp_path / "file"), read_equal_columns(tmp_path / "run"))
        assert not (tmp_path / "run/study.db").exists()
        assert not (tmp_path / "studies.log.lock").exists()

    @pytest.mark.slow
    def test_several_studies_and_other_budgets(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            run_study(tiny(tmp_path / name, study=name))
        tighter = run_study(tiny(tmp_path / "one", study="one", budget_gflops=0.0042))
        assert all(record.gflops <= 0.25 for record in tighter.front)
        storage = open_storage(tiny(tmp_path / "one"), tmp_path, existing=True)
        assert optuna.get_all_study_names(storage) == ["two", "one #2"]
        study = find_study(storage, "one")
        assert study is not None
        assert study.study_name == "one #2"
        with pytest.raises(InputError, match=r"contains a study two with trials already, but .*/other has no shared"):
            run_study(tiny(tmp_path / "other", study="two"))
        with pytest.raises(InputError, match="must continue in the storage journal:///.*, but got no --storage"):
            run_study(whole(tmp_path / "one", study="one"))
        assert not (tmp_path / "other").exists()

    def test_damage_while_a_study_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Evaluator.evaluate

        def damaging(*args: Any, **kwargs: Any) -> Any:
            append(tmp_path / "studies.log", b'{"op_code":8\n{"op_code"\n')
            return original(*args, **kwargs)

        monkeypatch.setattr(Evaluator, "evaluate", damaging)
        message = r"the storage journal:///.*/studies.log was lost: .* damaged: line \d+ is not a record; the same"
        with pytest.raises(StorageLost, match=message):
            run_study(tiny(tmp_path / "run"))

    @pytest.mark.slow
    def test_its_pages_are_served(self, tmp_path: Path) -> None:
        run_study(tiny(tmp_path / "run", study="served"))
        append(tmp_path / "studies.log", HALF)
        size = (tmp_path / "studies.log").stat().st_size
        assert_pages_are_served(tmp_path / "run", name="served", trials=4)
        assert (tmp_path / "studies.log").stat().st_size == size, "reading repairs nothing"


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (b"SQLite format 3\0\x10\0", 1),
            (b'{"op_code":0', 0),
            (b"[1, 2]\n", 1),
            (b'{"trial": 3}', 1),
        ],
    )
    def test_a_foreign_file_is_refused_and_stays(self, tmp_path: Path, content: bytes, line: int) -> None:
        """Except for a possible first half line of a journal."""
        path = tmp_path / "studies.log"
        path.write_bytes(content)
        if not line:
            open_storage(tiny(tmp_path / "run"), tmp_path / "run")
            assert path.read_bytes() == b""
            return
        with pytest.raises(InputError, match=f"is not a journal, or is damaged: line {line} is not a record"):
            run_study(tiny(tmp_path / "run"))
        assert path.read_bytes() == content
        assert {entry.name for entry in tmp_path.iterdir()} == {"studies.log"}

    @pytest.mark.parametrize("line", [5, -1])
    def test_damage_is_reported_with_its_line(self, tmp_path: Path, line: int) -> None:
        path = tmp_path / "studies.log"
        some_journal(path)
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line] = lines[line].replace(b"{", b"[", 1)
        path.write_bytes(b"".join(lines))
        number = range(1, len(lines) + 1)[line]
        with pytest.raises(InputError, match=f"or is damaged: line {number} is not a record"):
            run_study(tiny(tmp_path / "run"))
        assert path.read_bytes() == b"".join(lines)
        assert not (tmp_path / "run").exists()

    def test_records_that_contradict_each_other(self, tmp_path: Path) -> None:
        path = tmp_path / "studies.log"
        some_journal(path)
        path.write_bytes(path.read_bytes().replace(b'"study_name"', b'"study_nama"'))
        with pytest.raises(InputError, match="is damaged: its records contradict each other"):
            open_storage(tiny(tmp_path / "run"), tmp_path / "run")

    def test_a_folder_that_is_missing_and_a_path_that_is_one(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"cannot be used: there is no folder {tmp_path}/nowhere"):
            run_study(tiny(tmp_path / "run", storage=f"journal://{tmp_path}/nowhere/s.log"))
        with pytest.raises(InputError, match=f"cannot be used: Is a directory: {tmp_path}"):
            run_study(tiny(tmp_path / "run", storage=f"journal://{tmp_path}"))
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        some_journal(tmp_path / "studies.log")
        original = os.access

        def refused(path: Any, mode: int) -> bool:
            return Path(path) != tmp_path and original(path, mode)

        monkeypatch.setattr("ltmsearch.search.storage.journal.os.access", refused)  # tests may run as root
        with pytest.raises(InputError, match=f"its lock cannot be created in {tmp_path}: Permission denied"):
            open_storage(tiny(tmp_path / "run"), tmp_path / "run")


class TestWriting:
    def test_the_next_writer_removes_half_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "studies.log"
        some_journal(path)
        storage = JournalStorage(Journal(path))
        append(path, HALF)
        study = optuna.load_study(study_name="some", storage=storage)
        study.set_user_attr("kept", True)
        assert HALF not in path.read_bytes()
        again = optuna.load_study(study_name="some", storage=JournalStorage(JournalFileBackend(str(path))))
        assert again.user_attrs == {"kept": True}
        assert len(again.trials) == 3

    @pytest.mark.parametrize("tail", [HALF + 30 * b"\0", b"\0" * 200, b'{"op', HALF * 4000])
    def test_remains_of_a_power_failure(self, tmp_path: Path, tail: bytes) -> None:
        size = some_journal(tmp_path / "studies.log")
        append(tmp_path / "studies.log", tail)
        open_storage(tiny(tmp_path / "run"), tmp_path / "run")
        assert (tmp_path / "studies.log").stat().st_size == size

    def test_a_full_disk_leaves_no_half_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "studies.log"
        size = some_journal(path)
        study = optuna.load_study(study_name="some", storage=JournalStorage(Journal(path)))
        original = os.write

        def full(descriptor: int, content: Any) -> int:
            if len(content) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(descriptor, content[: len(content) // 2])

        with monkeypatch.context() as patch:
            patch.setattr("ltmsearch.search.storage.journal.os.write", full)
            with pytest.raises(JournalError, match="No space left on device") as caught:
                study.set_user_attr("kept", True)
        assert not caught.value.temporary
        assert path.stat().st_size == size
        assert not Path(f"{path}.lock").exists()
        study.set_user_attr("kept", True)
        assert study.user_attrs == {"kept": True}
        path.unlink()
        with pytest.raises(JournalError, match="No such file or directory") as caught:
            study.set_user_attr("kept", False)
        assert caught.value.temporary, "a shared disk may come back"
        assert not path.exists()
