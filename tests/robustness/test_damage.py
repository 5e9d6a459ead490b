"""Damaged and foreign files of runs and trainings, through the commands: one line, and nothing is overwritten."""

import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from support.command_line import call, tiny_options
from support.fuzzing import at_most, outcome

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.checkpoint import digest
from ltmsearch.search.storage import find_study, open_storage, refuse_damaged_study

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
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        yield


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


# ---------------------------------------------------------------------------------------------------------------------
# The study's database


def study_db(path: Path) -> str:
    """All that a study's database tells of its trials."""
    settings = ResolvedSettings.load(path.parent / "settings.yaml")
    refuse_damaged_study(settings, path.parent)
    study = find_study(open_storage(settings, path.parent, existing=True), settings.study)
    assert study is not None
    return repr([(t.number, t.state, t.values, t.params, t.user_attrs, t.system_attrs) for t in study.get_trials()])


def flips(run: Path, number: int) -> Counter[str]:
    """What comes of one flipped bit in the database, at as many places."""
    path, came = run / "study.db", Counter[str]()
    content = path.read_bytes()
    for seed in range(number):
        damaged, rng = bytearray(content), random.Random(seed)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        came[outcome(study_db, path)] += 1
        for beside in run.glob("study.db-*"):
            beside.unlink()
    path.write_bytes(content)
    return came


def test_a_flipped_bit_in_the_database_is_refused_or_does_no_harm(run: Path) -> None:
    assert set(flips(run, 25)) == {"loaded", "refused"}


@pytest.mark.thorough
def test_flipped_bits_all_over_the_database(run: Path, record_property: Callable[[str, object], None]) -> None:
    came = flips(run, 300)
    record_property("summary", f"one bit flipped in study.db: {came.total()} cases, {dict(came)}")
    assert set(came) == {"loaded", "refused"}


@pytest.mark.parametrize("what", ["run", "dashboard"])
@pytest.mark.parametrize("foreign", ["of another program", "of another study"])
def test_another_database_is_refused(run: Path, images: Path, command: Command, what: str, foreign: str) -> None:
    path = run / "study.db"
    if foreign == "of another program":
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE songs (title TEXT)")
            connection.commit()
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE studies SET study_name = 'another'")
            connection.commit()
    told = command(*arguments(what, run, images))
    assert (told.code, told.changed) == (2, set())
    assert str(path) in told.error.splitlines()[-1] or "holds no mobilevit_xxs" in told.error


def test_a_database_that_is_gone_does_not_begin_a_new_search(run: Path, images: Path, command: Command) -> None:
    (run / "study.db").unlink()
    told = command(*arguments("run", run, images))
    assert (told.code, told.changed) == (2, set())
    assert told.error.endswith("restore a copy of it, or start another study with --study NAME or --out DIR")


# ---------------------------------------------------------------------------------------------------------------------
# The shared weights


@pytest.mark.parametrize("what", ["run", "export"])
def test_a_flipped_bit_in_the_shared_weights_is_noticed(run: Path, images: Path, command: Command, what: str) -> None:
    path = run / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4  # far behind the header: safetensors itself has no checksum
    path.write_bytes(content)
    told = command(*arguments(what, run, images))
    assert (told.code, told.changed) == (2, set())
    assert "its weights are not those that were written" in told.error


def test_weights_of_another_study_are_refused(run: Path, images: Path, command: Command, tmp_path: Path) -> None:
    """With a header that is right for this one, so that only the tensors tell."""
    other = Supernet("mobilevit_xxs", num_classes=3).state_dict()
    with safe_open(run / "supernet.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["ltmsearch"])
    tensors = {name: value.contiguous() for name, value in other.items()}
    described["sha256"] = digest(tensors)
    save_file(tensors, run / "supernet.safetensors", metadata={"ltmsearch": json.dumps(described)})
    for asked in (("export", run, "--weights"), arguments("run", run, images)):
        told = command(*asked)
        assert told.code == 2, told
        assert "Traceback" not in told.error
        assert not {name for name in told.changed if not name.startswith("export/")}
