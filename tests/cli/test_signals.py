"""Commands end on SIGTERM and Ctrl-C, whatever handling of signals they were started with."""

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.processes import DEVNULL, PIPE, Process, started

COMMAND = """
import os, signal, sys, time
inherited = sys.argv.pop(1)
if "block" in inherited:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
if "ignore" in inherited:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from ltmsearch.cli import signals
from ltmsearch.cli.commands import app
from ltmsearch.cli.main import main
from ltmsearch.cli.terminal import watched

def hold() -> None:
    print("ready", os.getpid(), flush=True)
    for _ in range(600):
        time.sleep(0.1)

@app.command()
def plain() -> None:
    hold()

@app.command()
def long() -> None:
    with watched(quiet=False, verbose=False, next_step=lambda: "repeat"):
        hold()

@app.command()
def stubborn() -> None:
    class Lost:
        def __del__(self) -> None:
            hold()
    signals.REPEATED_SECONDS = 0.2
    Lost()  # the exception of the first SIGTERM is lost in its destructor
    hold()

main()
"""
"""The command line with commands that wait; the first argument tells how signals were handled at the start."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("signals") / "command.py"
    path.write_text(COMMAND)
    return str(path)


@contextmanager
def waiting(program: str, inherited: str, command: str) -> Iterator[Process]:
    with started([sys.executable, program, inherited, command], stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        yield process


@pytest.mark.parametrize("inherited", ["default", "ignore", "block", "ignore and block"])
@pytest.mark.parametrize(("command", "line"), [("plain", "terminated\n"), ("long", "terminated; repeat\n")])
def test_sigterm_ends_every_command(program: str, inherited: str, command: str, line: str) -> None:
    with waiting(program, inherited, command) as process:
        process.terminate()
        process.terminate()  # as `timeout` does
        assert process.communicate(timeout=30) == ("", line)
        # To a shell both are 143; the latter, where the second SIGTERM comes while the process ends.
        assert process.returncode in (143, -signal.SIGTERM)


def test_ctrl_c_ends_every_command(program: str) -> None:
    for command, line in (("plain", "stopped\n"), ("long", "stopped; repeat\n")):
        with waiting(program, "block", command) as process:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", line)
            assert process.returncode == 1


def test_a_lost_sigterm_can_be_repeated(program: str) -> None:
    with waiting(program, "default", "stubborn") as process:
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready"), "the first was lost"
        time.sleep(0.3)
        process.terminate()
        assert process.communicate(timeout=30)[1].endswith("\nterminated\n")
        assert process.returncode == 143


class Terminal:
    """A shell script that runs in a terminal of its own.

    Args:
        script: Commands of `sh`.
    """

    def __init__(self, script: str) -> None:
        self.keyboard, screen = pty.openpty()
        # A session leader without a terminal gets the one that it opens.
        script = f"exec < {os.ttyname(screen)}; {script}"
        self.run = started(["sh", "-c", script], stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        self.screen = screen

    def __enter__(self) -> "Terminal":
        self.process = self.run.__enter__()
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline().removeprefix("ready "))
        return self

    def __exit__(self, *_: object) -> None:
        self.run.__exit__(None, None, None)
        os.close(self.keyboard)
        os.close(self.screen)

    def press_ctrl_c(self) -> None:
        os.write(self.keyboard, b"\x03")


@pytest.mark.parametrize("trap", ["", "trap '' INT; "])
def test_ctrl_c_in_a_terminal_ends_a_command_in_the_foreground(program: str, trap: str) -> None:
    with Terminal(f"{trap}exec {sys.executable} {program} default long") as terminal:
        terminal.press_ctrl_c()
        assert terminal.process.communicate(timeout=30)[1].endswith("stopped; repeat\n")
        assert terminal.process.returncode == 1


def test_ctrl_c_in_a_terminal_spares_a_background_job(program: str) -> None:
    """A shell without job control ignores SIGINT for it; SIGTERM ends it."""
    with Terminal(f"trap 'echo shell >&2' INT; {sys.executable} {program} default long & wait; wait") as terminal:
        terminal.press_ctrl_c()
        assert terminal.process.stderr is not None
        assert terminal.process.stderr.readline() == "shell\n", "the signal was sent to all"
        time.sleep(0.3)
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.process.communicate(timeout=30)[1] == "terminated; repeat\n"
