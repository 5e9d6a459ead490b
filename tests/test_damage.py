"""Damaged and foreign files of runs and trainings, through the commands: one line, and nothing is overwritten."""

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import call, image_folder, tiny_options, tiny_study
from fuzzing import at_most

SECONDS = 60
"""That a command may take: it takes few, and none may wait for ever."""


@dataclass(frozen=True)
class Told:
    """What came of a command."""

    code: int
    error: str
    changed: set[str]
    """Files of the run directory that are not as before."""


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.drawing._write_png", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return tiny_study(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def hashes(folder: Path) -> dict[str, str]:
    """Of every file; SQLite's own two beside a database come and go with its readers."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


Command = Callable[..., Told]


@pytest.fixture
def command(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls `ltmsearch`, and looks at the run directory before and after."""
    monkeypatch.chdir(run.parent)

    def of(*arguments: object) -> Told:
        before = hashes(run)
        with at_most(SECONDS):
            code, _, error = call(*map(str, arguments), monkeypatch=monkeypatch, capsys=capsys)
        after = hashes(run)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return Told(code, error.strip(), changed)

    return of


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_text(path: Path) -> None:
    path.write_text("these are\nnot the files\nthat you look for\n")


def of_noise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flipped_at_its_start(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(0, 40, 3):
        content[place] ^= 1 << place % 8
    path.write_bytes(content)


DAMAGE = [cut_off, empty, of_text, of_noise, a_folder, flipped_at_its_start]


def arguments(what: str, run: Path, images: Path) -> tuple[object, ...]:
    """A command that reads the run directory, whole or in part."""
    recipe = next((run / "recipes").glob("*.yaml"))
    weights = run / "supernet.safetensors"
    return {
        "run": ("run", *tiny_options(out=run)),
        "front": ("front", run),
        "export": ("export", run),
        "dashboard": ("dashboard", run, "--port", 0),
        "resume-from": ("run", *tiny_options(out=run.parent / "new"), "--resume-from", run),
        "train": ("train", recipe, "--data-dir", images, "--out", run.parent / "t", "--num-classes", 2),
        "init": ("train", recipe, "--data-dir", images, "--out", run.parent / "t", "--num-classes", 2, "--init", run),
        "validate": ("validate", recipe, "--checkpoint", weights),
        "visualize": ("visualize", recipe, "--checkpoint", weights, "--out", run.parent / "v"),
    }[what]


READERS = {
    "settings.yaml": ("run", "front", "export", "dashboard", "resume-from"),
    "supernet.safetensors": ("run", "export", "resume-from", "init", "validate", "visualize"),
    "study.db": ("run", "dashboard"),
    "trials.csv": ("front", "export", "resume-from"),
    "times.json": ("run", "front"),
    "recipes": ("train", "validate", "visualize"),
}
"""File → the commands that read it."""


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(("file", "what"), [(file, what) for file, readers in READERS.items() for what in readers])
def test_a_damaged_file_is_refused_and_nothing_changes(
    run: Path, images: Path, command: Command, file: str, what: str, damage: Callable[[Path], None]
) -> None:
    asked = arguments(what, run, images)
    damage(next((run / "recipes").glob("*.yaml")) if file == "recipes" else run / file)
    told = command(*asked)
    line = told.error.splitlines()[-1]
    assert told.code == 2, told
    assert line.startswith("error: ")
    assert line.isprintable()
    assert "Traceback" not in told.error
    assert told.changed == set()
    assert {path.name for path in run.parent.iterdir()} == {"run"}, "nor is anything else written"
