"""Runs and their leases: a second run is refused, a takeover ends the first, and reading needs no lease."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.command_line import Interrupt, Notes, call, tiny_options
from support.command_line import tiny_vit as whole

from ltmsearch import StudySettings, run_study
from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.search.lease import DRIVER_FILE, DriverFile, Lease
from ltmsearch.search.storage import open_storage
from ltmsearch.search.trial import Evaluator


def tiny_vit(run: Path, **changes: Any) -> StudySettings:
    return whole(run, **{"trials": 2, **changes})


def files(folder: Path) -> dict[str, bytes | str]:
    """All files of a run; for a database its rows, as SQLite moves them between its files."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("study.db-"))
    return {str(path.relative_to(folder)): content(path) for path in found}


def content(path: Path) -> bytes | str:
    if path.suffix != ".db":
        return path.read_bytes()
    with closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump())


def during_trial(number: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an action once, while the n-th trial is evaluated."""
    original, calls = Evaluator.evaluate, [0]

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        result = original(*args, **kwargs)
        if calls[0] == number:
            action()
        return result

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)


def test_a_second_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, refusals = tmp_path / "run", []

    def start_another() -> None:
        before = files(tmp_path)
        refusals.append(call("run", *tiny_options(out=run, trials=5), monkeypatch=monkeypatch, capsys=capsys))
        assert files(tmp_path) == before

    during_trial(2, start_another, monkeypatch)
    assert len(run_study(tiny_vit(run)).trials) == 3
    ((code, out, error),) = refusals
    assert (code, out) == (2, "")
    assert error.startswith(f"error: the run directory {run} is driven by ")
    assert error.endswith("end it by adding --takeover to this command\n")
    assert error.count("\n") == 1
    assert not (run / DRIVER_FILE).exists()


@pytest.mark.long
def test_a_takeover_ends_the_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = tmp_path / "run", ["run", *tiny_options(out=tmp_path / "run", trials=2)]
    seen: dict[str, bytes | str] = {}
    with Lease(run, takeover=True) as later:

        def take_over() -> None:
            later.acquire(DriverFile(run))
            seen.update(files(tmp_path))

        with monkeypatch.context() as patch:
            during_trial(2, take_over, patch)
            code, out, error = call(*arguments, "--quiet", monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out) == (1, "")
        ends = "this driver ends and writes nothing more"
        assert error == f"failed: the run directory {run} was taken over by {later.holder}: {ends}\n"
        assert files(tmp_path) == seen
        code, _, error = call(*arguments, "--takeover", monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0
        assert f"taking the run directory {run} over from {later.holder}, which ends before its next write\n" in error


@pytest.mark.parametrize("how", ["journal", pytest.param("sqlite", marks=pytest.mark.thorough)])
class TestSharedStorages:
    @pytest.mark.long
    def test_a_copied_run_directory(self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two run directories with the weights of one study: the record in its storage tells them apart."""
        storage = f"{how}:///{tmp_path}/all"
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny_vit(tmp_path / "run", study="one", storage=storage), Interrupt(6))
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        refusals = []

        def start_the_copy() -> None:
            with pytest.raises(InputError) as caught:
                run_study(tiny_vit(tmp_path / "copy", study="one", storage=storage))
            refusals.append(str(caught.value))

        during_trial(1, start_the_copy, monkeypatch)
        run_study(tiny_vit(tmp_path / "run", study="one", storage=storage))
        (line,) = refusals
        assert line.startswith(f"the study one in the storage {how}:///")
        assert " is driven by " in line
        assert not (tmp_path / "copy" / DRIVER_FILE).exists()

    @pytest.mark.slow
    def test_a_takeover_from_another_run_directory(
        self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = f"{how}:///{tmp_path}/all"
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny_vit(tmp_path / "run", study="one", storage=storage), Interrupt(6))
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        notes, ended = Notes(), []

        def take_over() -> None:
            result = run_study(tiny_vit(tmp_path / "copy", study="one", storage=storage), notes, takeover=True)
            ended.append(len(result.trials))

        during_trial(1, take_over, monkeypatch)
        with pytest.raises(
            LeaseLost, match="the study one in the storage .* no longer names this process as its driver"
        ):
            run_study(tiny_vit(tmp_path / "run", study="one", storage=storage))
        assert ended == [3]
        assert any(line.startswith("taking the study one in the storage ") for line in notes.lines)

    @pytest.mark.slow
    def test_the_lease_is_copied_to_other_budgets(self, how: str, tmp_path: Path) -> None:
        """Another study then replaces the one with the record."""
        storage = f"{how}:///{tmp_path}/all"
        run_study(tiny_vit(tmp_path / "run", study="one", storage=storage))
        result = run_study(tiny_vit(tmp_path / "run", study="one", storage=storage, budget_gflops=0.0042, trials=4))
        assert len(result.trials) >= 5

    def test_a_study_that_is_deleted_while_it_runs(
        self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = tiny_vit(tmp_path / "run", study="one", storage=f"{how}:///{tmp_path}/all")

        def delete() -> None:
            optuna.delete_study(study_name="one", storage=open_storage(settings, tmp_path / "run", existing=True))

        during_trial(2, delete, monkeypatch)
        with pytest.raises(LeaseLost, match="the study one in the storage .* is gone: it was deleted"):
            run_study(settings)


def test_front_writes_nothing_while_a_driver_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_study(tiny_vit(run))
    (run / "front.html").unlink()
    with Lease(run) as lease:
        lease.acquire(DriverFile(run))
        before = files(run)
        code, out, err = call("front", str(run), monkeypatch=monkeypatch, capsys=capsys)
        assert code == 0
        assert "GFLOPs" in out
        assert err == f"{run} is being run by {lease.holder}, which writes its files: nothing is written here\n"
        assert files(run) == before
    call("front", str(run), monkeypatch=monkeypatch, capsys=capsys)
    assert (run / "front.html").exists()
