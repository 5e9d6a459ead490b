"""Finished studies as fixtures, made once per session; `conftest.py` imports them."""

import json
import shutil
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from support.command_line import image_folder, tiny_study
from support.processes import PIPE, started

REJECTING: dict[str, Any] = {"sampler": "random", "budget_gflops": 0.24, "trials": 8}
"""Settings of `rejecting`."""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images."""
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def rejecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with trials rejected over the budget, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("rejecting"), **REJECTING)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def assert_pages_are_served(run: Path, *, name: str, trials: int) -> None:
    """Check that the dashboard of a study serves its trials with notes and files, and ends with Ctrl-C.

    Args:
        run: Its run directory.
        name: Name of the study.
        trials: Number of its trials.
    """
    command = [sys.executable, "-m", "ltmsearch", "dashboard", str(run), "--port", "0"]
    with started(command, stdout=PIPE) as process:
        assert process.stdout is not None
        root, _, number = process.stdout.readline().split()[4].partition("/dashboard/studies/")
        with urllib.request.urlopen(f"{root}/api/studies/{number}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert found["name"] == name
    assert [trial["number"] for trial in found["trials"]] == list(range(trials))
    assert all(trial["note"]["body"] and trial["artifacts"] for trial in found["trials"])
