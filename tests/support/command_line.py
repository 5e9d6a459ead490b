"""`ltmsearch` as a person calls it, in this process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltmsearch.callbacks import Callbacks
from ltmsearch.cli.main import main
from ltmsearch.config.settings import StudySettings
from ltmsearch.study import run_study
from support.sizes import TINY, TINY_VIT

Ltmsearch = Callable[..., tuple[int, str, str]]
"""`ltmsearch ARGUMENTS`: exit code, standard output, standard error."""


class Notes(Callbacks):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


class Interrupt(Callbacks):
    """Presses Ctrl-C at the n-th sign of progress."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, status: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `ltmsearch ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["ltmsearch", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    output = capsys.readouterr()
    return int(exit_info.value.code or 0), output.out, output.err


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return root


def tiny(run: Path, **changes: Any) -> StudySettings:
    """Settings of a study that takes seconds."""
    return StudySettings.make("test", **{**TINY, "out": str(run), **changes})


def tiny_vit(run: Path, **changes: Any) -> StudySettings:
    """The same for a ViT, which takes a third of the time, where the network does not matter."""
    return tiny(run, **{**TINY_VIT, **changes})


def tiny_study(folder: Path, **changes: Any) -> Path:
    """The run directory of a finished study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        run_study(tiny(folder / "run", **changes))
    return folder / "run"


def tiny_options(**changed: object) -> list[str]:
    """The options of a study that takes seconds."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, **changed}.items()]
