"""A finished study to damage or to attack, as fixtures: one is made for all modules that import them."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from support.command_line import image_folder, tiny_study


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images."""
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def assert_pages_are_served(run: Path, *, name: str, trials: int) -> None:
    """The dashboard of a study knows its trials with their notes and files, and ends with Ctrl-C.

    Args:
        run: Its run directory.
        name: Of the study.
        trials: How many it has.
    """
    command = [sys.executable, "-m", "ltmsearch", "dashboard", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            root, _, number = process.stdout.readline().split()[4].partition("/dashboard/studies/")
            with urllib.request.urlopen(f"{root}/api/studies/{number}", timeout=30) as answer:
                told: dict[str, Any] = json.load(answer)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()  # else a failure would wait for it for ever
    assert told["name"] == name
    assert [trial["number"] for trial in told["trials"]] == list(range(trials))
    assert all(trial["note"]["body"] and trial["artifacts"] for trial in told["trials"])
