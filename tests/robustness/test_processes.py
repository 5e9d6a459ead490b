"""Processes that tests start end with them, and handle signals as in a new terminal."""

import ast
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.processes import PIPE, children, completed, is_running, started

TESTS = Path(__file__).parents[1]
STARTING = {"subprocess": {"support/processes.py"}, "multiprocessing": {"support/faults.py"}}
"""Module that starts processes → the only files that may import it."""
HANDLING = """
import signal
print(*(signal.getsignal(number).__class__.__name__ for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
print(signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)
print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""
FAMILY = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
"""A process with a child that left its process group, as torchrun's workers do."""
PARENT = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
from support.processes import started
with started([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
    print(process.pid, flush=True)
    process.wait()
"""


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is left"
        time.sleep(0.01)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("module", STARTING)
def test_tests_start_processes_in_one_place(module: str) -> None:
    users = {str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py") if module in imports(path)}
    assert users == STARTING[module]


def test_children_have_default_signal_handling() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        done = completed([sys.executable, "-c", HANDLING])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done.stdout.split() == ["builtin_function_or_method", "Handlers", "Handlers", "True", "0"]


def test_children_end_with_a_test_that_fails() -> None:
    with (
        pytest.raises(AssertionError, match="as in a test"),
        started([sys.executable, "-c", FAMILY], stdout=PIPE) as process,
    ):
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert children(process.pid) == {grandchild}
        raise AssertionError("as in a test")
    assert_ends(process.pid)
    assert_ends(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell children that their parent died")
def test_children_end_with_tests_that_are_killed() -> None:
    with started([sys.executable, "-c", PARENT], stdout=PIPE) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert is_running(pid)
        os.kill(tests.pid, signal.SIGKILL)
        assert_ends(pid)
