"""Fixtures of the command line: one finished study."""

from pathlib import Path

import pytest
from support.command_line import tiny_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a finished study."""
    return tiny_study(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
