"""One driver per study: a running driver is refused, a dead one replaced, and two never both win."""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.command_line import Notes
from support.processes import PIPE, Process, started

from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.search.lease import DRIVER_FILE, DriverFile, Holder, Lease, current_driver

DRIVER = """
import os, sys
from pathlib import Path
from ltmsearch.search.lease import DriverFile, Lease
folder = Path(sys.argv[1])
with Lease(folder) as lease:
    lease.acquire(DriverFile(folder))
    if "fork" in sys.argv and os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("acquired", flush=True)
    sys.stdin.readline()
"""
"""A driver in its own process: acquires a lease, and releases it at a line of input."""


@pytest.fixture(autouse=True)
def _frequent_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.search.lease.lease.HEARTBEAT_SECONDS", 0.4)


@contextmanager
def driver(folder: Path, *options: str) -> Iterator[Process]:
    """A driver that has acquired its lease."""
    command = [sys.executable, "-c", DRIVER, str(folder), *options]
    with started(command, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "acquired\n"
        yield process


def leave_record(folder: Path, **changes: object) -> Holder:
    """Write the record of a driver that was killed, with some changes."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = Holder.this_process(folder / DRIVER_FILE).model_copy(update={"token": "another", **changes})
    (folder / DRIVER_FILE).write_text(holder.model_dump_json())
    return holder


def recorded_token(folder: Path) -> str:
    return str(json.loads((folder / DRIVER_FILE).read_text())["token"])


def acquire_at_once(folder: Path) -> None:
    notes = Notes()
    with Lease(folder, callbacks=notes) as lease:
        lease.acquire(DriverFile(folder))
        lease.confirm()
        assert recorded_token(folder) == lease.holder.token
    assert notes.lines == []


class TestAcquire:
    def test_nothing_is_left(self, tmp_path: Path) -> None:
        acquire_at_once(tmp_path / "runs/one")
        assert list(tmp_path.iterdir()) == []
        with Lease(tmp_path / "runs/one") as lease:
            lease.acquire(DriverFile(tmp_path / "runs/one"))
            (tmp_path / "runs/one/settings.yaml").touch()
        assert [path.name for path in (tmp_path / "runs/one").iterdir()] == ["settings.yaml"]

    def test_a_second_driver_is_refused_in_one_line(self, tmp_path: Path) -> None:
        with Lease(tmp_path) as first, Lease(tmp_path) as second:
            first.acquire(DriverFile(tmp_path))
            os.utime(tmp_path / DRIVER_FILE, (time.time() - 300,) * 2)
            with pytest.raises(InputError) as caught:
                second.acquire(DriverFile(tmp_path))
            first.confirm()
        assert str(caught.value) == (
            f"the run directory {tmp_path} is driven by {first.holder} (last heartbeat 5 min ago): wait until it ends, "
            "or end it by adding --takeover to this command"
        )
        assert f"{first.holder.user}@{first.holder.host}, process {os.getpid()}, since 20" in str(caught.value)

    @pytest.mark.parametrize("options", [(), ("fork",)])
    def test_a_killed_driver_is_replaced_at_once(self, tmp_path: Path, options: tuple[str, ...]) -> None:
        """Also before its parent has noticed, and while a child that it forked still runs."""
        with driver(tmp_path, *options) as other:
            assert f"process {other.pid}" in str(current_driver(tmp_path))
            with pytest.raises(InputError, match=f"process {other.pid}"):
                acquire_at_once(tmp_path)
            other.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
            assert current_driver(tmp_path) is None
            acquire_at_once(tmp_path)

    def test_a_lease_that_could_not_be_released_blocks_nobody(self, tmp_path: Path) -> None:
        """A notebook continues after its storage was lost."""

        class Stuck(DriverFile):
            def read(self) -> None:
                raise OSError("the disk is gone")

        with Lease(tmp_path) as lease:
            store = DriverFile(tmp_path)
            lease.acquire(store)
            store.__class__ = Stuck
        assert recorded_token(tmp_path) == lease.holder.token
        acquire_at_once(tmp_path)

    def test_a_copied_record_names_its_driver(self, tmp_path: Path) -> None:
        with Lease(tmp_path / "run") as lease:
            lease.acquire(DriverFile(tmp_path / "run"))
            (tmp_path / "copy").mkdir()
            (tmp_path / "copy" / DRIVER_FILE).write_bytes((tmp_path / "run" / DRIVER_FILE).read_bytes())
            with pytest.raises(InputError, match=f"is driven by {lease.holder}"):
                acquire_at_once(tmp_path / "copy")
        acquire_at_once(tmp_path / "copy")

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="the run directory .*/file/run cannot be written"):
            acquire_at_once(tmp_path / "file/run")


class TestOtherHosts:
    @pytest.mark.parametrize("text", [None, "", '{"token": "x"}', "\0\xff"])
    def test_without_heartbeats_the_driver_has_ended(self, tmp_path: Path, text: str | None) -> None:
        """Also if its record is damaged."""
        leave_record(tmp_path, machine="another", host="node7", pid=1)
        if text is not None:
            (tmp_path / DRIVER_FILE).write_text(text)
        assert ("node7" if text is None else "an unknown process") in str(current_driver(tmp_path))
        notes = Notes()
        with Lease(tmp_path, callbacks=notes) as lease:
            lease.acquire(DriverFile(tmp_path))
            lease.confirm()
        (line,) = notes.lines
        assert ("@node7, process 1, since" if text is None else "an unknown process, as its record is damaged") in line
        assert "which cannot be checked from here: waiting" in line

    def test_a_driver_with_heartbeats_is_refused(self, tmp_path: Path) -> None:
        leave_record(tmp_path, machine="another", host="node7")
        beat = threading.Timer(0.2, os.utime, (tmp_path / DRIVER_FILE,))
        beat.start()
        with Lease(tmp_path) as lease, pytest.raises(InputError, match="driven by .*@node7"):
            lease.acquire(DriverFile(tmp_path))
        beat.join()
        assert recorded_token(tmp_path) == "another"

    def test_heartbeats_survive_errors(self, tmp_path: Path) -> None:
        class Broken(DriverFile):
            beats = 0

            def beat(self, text: str) -> None:
                super().beat(text)
                self.beats += 1
                raise OSError("the disk is gone")

        store = Broken(tmp_path)
        with Lease(tmp_path) as lease:
            lease.acquire(store)
            os.utime(tmp_path / DRIVER_FILE, (0, 0))
            deadline = time.monotonic() + 30
            while store.beats < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            lease.confirm()
            assert (tmp_path / DRIVER_FILE).stat().st_mtime > 0


class TestTakeover:
    def test_the_earlier_driver_notices(self, tmp_path: Path) -> None:
        notes = Notes()
        with Lease(tmp_path) as earlier:
            store = DriverFile(tmp_path)
            earlier.acquire(store)
            with Lease(tmp_path, takeover=True, callbacks=notes) as later:
                later.acquire(DriverFile(tmp_path))
                time.sleep(0.5)  # heartbeats of the earlier driver must not bring it back
                later.confirm()
                with pytest.raises(LeaseLost, match=f"was taken over by {later.holder}: this driver ends"):
                    earlier.confirm()
                with pytest.raises(InputError, match=f"driven by {later.holder}"):
                    acquire_at_once(tmp_path)
                store.clear(earlier._text)
                assert recorded_token(tmp_path) == later.holder.token
            with pytest.raises(LeaseLost, match="no longer names this process as its driver"):
                earlier.confirm()
        (line,) = notes.lines
        assert (
            line == f"taking the run directory {tmp_path} over from {earlier.holder}, which ends before its next write"
        )

    @pytest.mark.parametrize("machine", [None, "another"])
    def test_other_hosts_are_not_awaited(
        self, tmp_path: Path, machine: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ltmsearch.search.lease.lease.HEARTBEAT_SECONDS", 1e6)
        if machine is not None:
            leave_record(tmp_path, machine=machine)
        with Lease(tmp_path, takeover=True) as lease:
            lease.acquire(DriverFile(tmp_path))
            lease.confirm()


@pytest.mark.parametrize("record", [False, True])
def test_one_of_several_drivers_wins(tmp_path: Path, record: bool) -> None:
    barrier = threading.Barrier(4)

    def drive(folder: Path) -> str:
        with Lease(folder) as lease:
            barrier.wait()
            try:
                lease.acquire(DriverFile(folder))
                lease.confirm()
            except InputError as error:
                return str(error)
            finally:
                barrier.wait()
        return "acquired"

    with ThreadPoolExecutor(4) as threads:
        for number in range(20):
            if record:
                leave_record(tmp_path / str(number))
            outcomes = list(threads.map(drive, [tmp_path / str(number)] * 4))
            assert outcomes.count("acquired") == 1
            assert sum("is driven by" in outcome for outcome in outcomes) == 3


def test_a_file_system_that_finds_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below /proc, where creating a folder fails as if its parent were missing."""
    tries = 0

    def missing(*_: object, **__: object) -> None:
        nonlocal tries
        tries += 1
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(Path, "mkdir", missing)
    with Lease(tmp_path / "run") as lease, pytest.raises(InputError, match="run cannot be written: No such file"):
        lease.acquire(DriverFile(tmp_path / "run"))
    assert 1 < tries < 100
