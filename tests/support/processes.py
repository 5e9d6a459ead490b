"""Processes that tests start: with default signal handling, and never longer than their `with` block.

Tests start every process here (`test_processes.py` checks it). A shell that ignores Ctrl-C, as under `nohup` and in
some CI, passes this on to all descendants, and a test that sends it would wait for ever.
"""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
Process = subprocess.Popen[str]
Completed = subprocess.CompletedProcess[str]
LAUNCH = Path(__file__).with_name("launch.py")
# Linux takes the end of the thread that started a process for the end of its parent: one thread starts them all.
_starter = ThreadPoolExecutor(1)


@contextmanager
def started(command: Sequence[str], *, user: pwd.struct_passwd | None = None, **options: Any) -> Iterator[Process]:
    """Start a process; kill it and its descendants at the end of the `with` block, or when this process dies.

    Args:
        command: The program and its arguments.
        user: User that runs it; None: that of the tests.
        options: Other arguments of `subprocess.Popen`.
    """
    uid, gid = (os.getuid(), os.getgid()) if user is None else (user.pw_uid, user.pw_gid)
    launch = [sys.executable, "-I", "-S", str(LAUNCH), *map(str, (os.getpid(), uid, gid)), *command]
    process = _starter.submit(subprocess.Popen, launch, text=True, start_new_session=True, **options).result()
    try:
        yield process
    finally:
        _kill(process)


def completed(
    command: Sequence[str], *, input: str | None = None, timeout: float = 120, check: bool = True, **options: Any
) -> Completed:
    """Run a process to its end, with its output as text.

    Raises:
        CalledProcessError: With `check`, its exit code is not 0.
        TimeoutExpired: It took longer than `timeout`, in seconds, and was killed.
    """
    pipes = {"stdin": None if input is None else PIPE, "stdout": PIPE, "stderr": PIPE}
    with started(command, **{**pipes, **options}) as process:
        out, err = process.communicate(input, timeout=timeout)
    done = Completed(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _kill(process: Process) -> None:
    left = children(process.pid)  # some, such as workers of torchrun, leave its process group
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def children(pid: int) -> set[int]:
    """Process ids of all descendants, read from /proc."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found |= {int(status.parent.name), *children(int(status.parent.name))}
    return found


def is_running(pid: int) -> bool:
    """Whether a process runs; False for one that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def title(pid: int) -> str:
    """Command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
