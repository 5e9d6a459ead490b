"""One driver per study: who is refused, who counts as ended, what a takeover does, and that two never both win."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.command_line import Notes

from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.search.lease import DRIVER, FileBoard, Lease, Owner, who_drives

HOLDS = """
import sys, time
from pathlib import Path
from ltmsearch.errors import InputError
from ltmsearch.search.lease import FileBoard, Lease
with Lease() as lease:
    sys.stdin.readline()
    try:
        lease.hold(FileBoard(Path(sys.argv[1])))
    except InputError as error:
        print(error, flush=True)
    else:
        print("holds", flush=True)
        sys.stdin.readline()
"""
"""A driver in a process of its own: takes a lease when it is told to, and lets it go when it is told again."""

BEAT = 0.2


class Driver:
    """Such a process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        self.process.communicate()


def put_up(folder: Path, **changes: object) -> Owner:
    """A record as a driver leaves it that was killed, with some of it changed."""
    owner = Owner.this_process().model_copy(update={"token": "another", **changes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DRIVER).write_text(owner.model_dump_json())
    return owner


def held_by(folder: Path) -> str:
    return str(json.loads((folder / DRIVER).read_text())["token"])


class TestTaking:
    def test_it_leaves_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "runs/one"
        with Lease() as lease:
            lease.hold(FileBoard(folder))
            lease.hold(FileBoard(folder))
            lease.confirm()
            assert held_by(folder) == lease.owner.token
        assert list(tmp_path.iterdir()) == []

    def test_what_came_into_the_folder_stays(self, tmp_path: Path) -> None:
        with Lease() as lease:
            lease.hold(FileBoard(tmp_path / "runs/one"))
            (tmp_path / "runs/one/settings.yaml").touch()
        assert [path.name for path in (tmp_path / "runs/one").iterdir()] == ["settings.yaml"]

    def test_a_second_driver_is_refused_in_one_line(self, tmp_path: Path) -> None:
        with Lease() as first, Lease() as second:
            first.hold(FileBoard(tmp_path))
            os.utime(tmp_path / DRIVER, (time.time() - 300,) * 2)
            with pytest.raises(InputError) as caught:
                second.hold(FileBoard(tmp_path))
            first.confirm()
        owner = first.owner
        assert str(caught.value) == (
            f"{tmp_path} is driven by {owner.user}@{owner.host}, process {os.getpid()}, since "
            f"{owner.started:%Y-%m-%d %H:%M:%S} (last sign of life 5 min ago): wait until it ends, or end it by "
            "continuing here with --takeover"
        )

    def test_a_process_that_was_killed_blocks_nobody(self, tmp_path: Path) -> None:
        other = Driver(tmp_path)
        try:
            other.go()
            assert other.says() == "holds"
            assert str(other.process.pid) in str(who_drives(tmp_path))
            with Lease(tell=pytest.fail) as lease, pytest.raises(InputError, match=f"process {other.process.pid}"):
                lease.hold(FileBoard(tmp_path))
            other.process.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody has asked for its end
            assert who_drives(tmp_path) is None
            with Lease(tell=pytest.fail) as lease:
                lease.hold(FileBoard(tmp_path))
                lease.confirm()
        finally:
            other.close()

    def test_what_this_process_could_not_take_down_blocks_nobody(self, tmp_path: Path) -> None:
        """A notebook goes on where its storage was lost."""

        class Stuck(FileBoard):
            def remove(self, owner: Owner) -> None:
                raise OSError("the disk is gone")

        with Lease() as lease:
            lease.hold(Stuck(tmp_path))
        assert held_by(tmp_path) == lease.owner.token
        with Lease(tell=pytest.fail) as another:
            another.hold(FileBoard(tmp_path))

    def test_a_process_id_that_is_used_again_blocks_nobody(self, tmp_path: Path) -> None:
        put_up(tmp_path, born="1")
        with Lease(tell=pytest.fail) as lease:
            lease.hold(FileBoard(tmp_path))

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with Lease() as lease, pytest.raises(InputError, match="the run directory .*/file/run cannot be written"):
            lease.hold(FileBoard(tmp_path / "file/run"))


class TestWatching:
    @pytest.mark.parametrize("text", [None, "", '{"token": "x"}', "\0\xff"])
    def test_another_host_that_gives_no_sign_of_life_has_ended(self, tmp_path: Path, text: str | None) -> None:
        """The same goes for a file that is damaged."""
        put_up(tmp_path, place="elsewhere", host="node7", pid=1)
        if text is not None:
            (tmp_path / DRIVER).write_text(text)
        notes = Notes()
        with Lease(tell=notes.note, beat_seconds=BEAT) as lease:
            lease.hold(FileBoard(tmp_path))
            lease.confirm()
        (line,) = notes.lines
        assert ("@node7, process 1, since" if text is None else f"somebody whose {DRIVER} is damaged") in line
        assert "whose process cannot be seen from here: watching for" in line

    def test_another_host_that_gives_one_is_at_work(self, tmp_path: Path) -> None:
        put_up(tmp_path, place="elsewhere", host="node7")
        over = threading.Event()

        def live() -> None:
            while not over.wait(BEAT):
                os.utime(tmp_path / DRIVER)

        thread = threading.Thread(target=live)
        thread.start()
        try:
            with Lease(beat_seconds=BEAT) as lease, pytest.raises(InputError, match="is driven by .*@node7"):
                lease.hold(FileBoard(tmp_path))
        finally:
            over.set()
            thread.join()
        assert held_by(tmp_path) == "another"

    def test_a_driver_gives_signs_of_life_whatever_happens_to_them(self, tmp_path: Path) -> None:
        class Broken(FileBoard):
            beats = 0

            def beat(self, owner: Owner) -> None:
                super().beat(owner)
                self.beats += 1
                raise OSError("the disk is gone")

        board = Broken(tmp_path)
        with Lease(beat_seconds=0.01) as lease:
            lease.hold(board)
            os.utime(tmp_path / DRIVER, (0, 0))
            deadline = time.monotonic() + 30
            while board.beats < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            lease.confirm()
            assert (tmp_path / DRIVER).stat().st_mtime > 0


class TestTakeover:
    def test_the_earlier_driver_notices(self, tmp_path: Path) -> None:
        notes = Notes()
        with Lease(beat_seconds=0.01) as earlier:
            earlier.hold(FileBoard(tmp_path))
            with Lease(takeover=True, tell=notes.note) as later:
                later.hold(FileBoard(tmp_path))
                time.sleep(0.1)  # signs of life of the earlier one must not put it up again
                later.confirm()
                with pytest.raises(LeaseLost, match=f"was taken over by {later.owner}: this driver ends"):
                    earlier.confirm()
                FileBoard(tmp_path).remove(earlier.owner)
                assert held_by(tmp_path) == later.owner.token
            with pytest.raises(LeaseLost, match="no longer says that this process drives it"):
                earlier.confirm()
        assert notes.lines == [f"taking {tmp_path} over from {earlier.owner}, which ends as soon as it notices"]

    def test_nobody_is_there(self, tmp_path: Path) -> None:
        with Lease(takeover=True, tell=pytest.fail) as lease:
            lease.hold(FileBoard(tmp_path))
            lease.confirm()

    def test_another_host_is_not_watched(self, tmp_path: Path) -> None:
        put_up(tmp_path, place="elsewhere")
        with Lease(takeover=True, beat_seconds=1e6) as lease:
            lease.hold(FileBoard(tmp_path))
            lease.confirm()


class TestTwoAtOnce:
    @pytest.mark.parametrize("before", ["nothing", "a driver that ended"])
    def test_threads(self, tmp_path: Path, before: str) -> None:
        for number in range(20):
            folder = tmp_path / str(number)
            if before != "nothing":
                put_up(folder, born="1")
            barrier, outcomes = threading.Barrier(4), []

            def drive(folder: Path = folder, barrier: threading.Barrier = barrier, to: list[str] = outcomes) -> None:
                with Lease() as lease:
                    barrier.wait()
                    try:
                        lease.hold(FileBoard(folder))
                        lease.confirm()
                    except InputError as error:
                        to.append(str(error))
                    else:
                        to.append("holds")
                    barrier.wait()

            threads = [threading.Thread(target=drive) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert outcomes.count("holds") == 1
            assert sum("is driven by" in outcome for outcome in outcomes) == 3

    def test_processes(self, tmp_path: Path) -> None:
        drivers = [Driver(tmp_path / "run") for _ in range(3)]
        try:
            for driver in drivers:
                driver.go()
            said = [driver.says() for driver in drivers]
            assert said.count("holds") == 1
            assert sum("is driven by" in line for line in said) == 2
        finally:
            for driver in drivers:
                driver.close()


def test_who_drives(tmp_path: Path) -> None:
    assert who_drives(tmp_path) is None
    put_up(tmp_path, born="1")
    assert who_drives(tmp_path) is None
    put_up(tmp_path, place="elsewhere", host="node7")
    assert "@node7, process " in str(who_drives(tmp_path))
    (tmp_path / DRIVER).write_text("{")
    assert who_drives(tmp_path) == f"somebody whose {DRIVER} is damaged"
