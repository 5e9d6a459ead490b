"""Runs and their leases: a second one is refused, a takeover ends the first, and looking needs none."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.command_line import Interrupt, Notes, call, tiny_options
from support.command_line import tiny as whole

from ltmsearch import StudySettings, run_study
from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.search.lease import DRIVER, FileBoard, Lease
from ltmsearch.search.storage import open_storage
from ltmsearch.search.trial import Evaluator


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG starts a browser; its own tests do that."""
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def tiny(run: Path, **changes: Any) -> StudySettings:
    return whole(run, **{"trials": 3, **changes})


def files(folder: Path) -> dict[str, bytes | str]:
    """All that a run wrote; of a database what it holds, as SQLite moves that between its files."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("study.db-"))
    return {str(path.relative_to(folder)): content(path) for path in found}


def content(path: Path) -> bytes | str:
    if path.suffix != ".db":
        return path.read_bytes()
    with closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump())


def during_trial(number: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, while the n-th trial is evaluated."""
    original, calls = Evaluator.evaluate, [0]

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        result = original(*args, **kwargs)
        if calls[0] == number:
            action()
        return result

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = []

    def start_another() -> None:
        before = files(tmp_path)
        with pytest.raises(InputError) as caught:
            run_study(tiny(tmp_path / "run", trials=5))
        refusals.append(str(caught.value))
        assert files(tmp_path) == before

    during_trial(2, start_another, monkeypatch)
    assert len(run_study(tiny(tmp_path / "run")).trials) == 4
    (line,) = refusals
    assert line.startswith(f"{tmp_path}/run is driven by ")
    assert not (tmp_path / "run" / DRIVER).exists()


def test_a_driver_that_was_taken_over_ends_and_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, seen = Lease(takeover=True), {}

    def take_over() -> None:
        later.hold(FileBoard(tmp_path / "run"))
        seen.update(files(tmp_path))

    with later:
        with monkeypatch.context() as patch, pytest.raises(LeaseLost, match=f"/run was taken over by {later.owner}: "):
            during_trial(3, take_over, patch)
            run_study(tiny(tmp_path / "run"))
        assert files(tmp_path) == seen
    assert len(run_study(tiny(tmp_path / "run")).trials) == 4


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", *tiny_options(out=tmp_path / "run", trials=2)]
    with Lease() as earlier:
        earlier.hold(FileBoard(tmp_path / "run"))
        code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {tmp_path}/run is driven by {earlier.owner} (last sign of life ")
        assert err.endswith("or end it by continuing here with --takeover\n")
        assert err.count("\n") == 1
        code, _, err = call(*arguments, "--takeover", monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0
        assert f"taking {tmp_path}/run over from {earlier.owner}, which ends as soon as it notices\n" in err


def test_the_exit_code_of_a_driver_that_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lease(takeover=True) as later:
        during_trial(2, lambda: later.hold(FileBoard(tmp_path / "run")), monkeypatch)
        arguments = ["run", *tiny_options(out=tmp_path / "run", trials=2), "--quiet"]
        code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out) == (1, "")
        told = f"failed: {tmp_path}/run was taken over by {later.owner}: this driver ends and writes nothing more\n"
        assert err == told


@pytest.mark.parametrize("how", ["journal", pytest.param("sqlite", marks=pytest.mark.thorough)])
class TestSharedStorages:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ltmsearch.search.storage.study_lease.SETTLING_SECONDS", 0.0)

    def test_a_copied_run_directory(self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two run directories that both hold the study's weights: its storage tells them apart."""
        storage = f"{how}:///{tmp_path}/all"
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(tmp_path / "run", study="one", storage=storage), Interrupt(7))
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        refusals = []

        def start_the_copy() -> None:
            with pytest.raises(InputError) as caught:
                run_study(tiny(tmp_path / "copy", study="one", storage=storage))
            refusals.append(str(caught.value))

        during_trial(1, start_the_copy, monkeypatch)
        run_study(tiny(tmp_path / "run", study="one", storage=storage))
        (line,) = refusals
        assert line.startswith(f"the study one in the storage {how}:///")
        assert " is driven by " in line
        assert not (tmp_path / "copy" / DRIVER).exists()

    def test_a_takeover_from_another_run_directory(
        self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = f"{how}:///{tmp_path}/all"
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(tmp_path / "run", study="one", storage=storage), Interrupt(7))
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        notes, ended = Notes(), []

        def take_over() -> None:
            monkeypatch.undo()
            monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
            result = run_study(tiny(tmp_path / "copy", study="one", storage=storage), notes, takeover=True)
            ended.append(len(result.trials))

        during_trial(1, take_over, monkeypatch)
        with pytest.raises(LeaseLost, match="the study one in the storage .* no longer says that this process drives"):
            run_study(tiny(tmp_path / "run", study="one", storage=storage))
        assert ended == [4]
        assert any(line.startswith("taking the study one in the storage ") for line in notes.lines)

    def test_it_goes_along_to_other_budgets(self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """There another study takes the place of the one that said who drives it."""
        storage = f"{how}:///{tmp_path}/all"
        run_study(tiny(tmp_path / "run", study="one", storage=storage))
        result = run_study(tiny(tmp_path / "run", study="one", storage=storage, budget_gflops=0.25, trials=5))
        assert len(result.trials) >= 6

    def test_a_study_that_is_deleted_while_it_runs(
        self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = tiny(tmp_path / "run", study="one", storage=f"{how}:///{tmp_path}/all")

        def delete() -> None:
            optuna.delete_study(study_name="one", storage=open_storage(settings, tmp_path / "run", existing=True))

        during_trial(2, delete, monkeypatch)
        with pytest.raises(LeaseLost, match="the study one in the storage .* is gone: somebody deleted it"):
            run_study(settings)


def test_front_writes_nothing_while_a_driver_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_study(tiny(run))
    (run / "front.html").unlink()
    with Lease() as lease:
        lease.hold(FileBoard(run))
        before = files(run)
        code, out, err = call("front", str(run), monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0
        assert "GFLOPs" in out
        assert err == f"{run} is driven by {lease.owner}: nothing is written, its files are that driver's\n"
        assert files(run) == before
    call("front", str(run), monkeypatch=monkeypatch, capsys=capsys)
    assert (run / "front.html").exists()
