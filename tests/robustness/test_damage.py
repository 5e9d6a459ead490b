"""Commands refuse damaged and foreign run directories in one line, and overwrite nothing."""

import hashlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from support.command_line import call, tiny_options
from support.fuzzing import at_most, outcome

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.errors import InputError
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.checkpoint import digest
from ltmsearch.search.storage import find_study, open_storage, refuse_damaged_study

SECONDS = 60
"""Limit of a command; usually it takes a few."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a command."""

    code: int
    error: str
    changed: set[str]
    """Files of the run directory that differ from before."""


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        yield


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every file but SQLite's temporary ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


Command = Callable[..., Outcome]


@pytest.fixture
def command(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `ltmsearch` and compare the run directory before and after."""
    monkeypatch.chdir(run.parent)

    def of(*arguments: object) -> Outcome:
        before = hashes(run)
        with at_most(SECONDS):
            code, _, error = call(*map(str, arguments), monkeypatch=monkeypatch, capsys=capsys)
        after = hashes(run)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return Outcome(code, error.strip(), changed)

    return of


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut_off(path: Path) -> None:
    """Keep the first half, up to the middle of an entry: between two lines a recipe may be whole."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half.rpartition(b":")[0] or half)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": cut_off,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("these are\nnot the files\nthat you look for\n"),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "a folder": a_folder,
}


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
    "answers.csv": ("front", "run"),
    "baselines.csv": ("run", "front"),
    "examples.json": ("front",),
    "recipes": ("train", "validate", "visualize"),
}
"""File → the commands that read it."""


def cases() -> list[Any]:
    """File, reader and damage; by default every file with its first reader, each with a different damage."""
    names = list(DAMAGE)
    return [
        pytest.param(file, what, damage, marks=[] if (i == 0 and j % len(names) == k) else pytest.mark.slow)
        for j, (file, readers) in enumerate(READERS.items())
        for i, what in enumerate(readers)
        for k, damage in enumerate(names)
    ]


@pytest.mark.long
@pytest.mark.parametrize(("file", "what", "damage"), cases())
def test_a_damaged_file_is_refused_and_nothing_changes(
    run: Path, images: Path, command: Command, file: str, what: str, damage: str
) -> None:
    asked = arguments(what, run, images)
    DAMAGE[damage](next((run / "recipes").glob("*.yaml")) if file == "recipes" else run / file)
    result = command(*asked)
    line = result.error.splitlines()[-1]
    assert result.code == 2, result
    assert line.startswith("error: ")
    assert line.isprintable()
    assert "Traceback" not in result.error
    assert result.changed == set()
    assert {path.name for path in run.parent.iterdir()} == {"run"}, "nor is anything else written"


# ---------------------------------------------------------------------------------------------------------------------
# The study's database


def study_db(path: Path) -> str:
    """Every trial in the database of a study."""
    settings = ResolvedSettings.load(path.parent / "settings.yaml")
    refuse_damaged_study(settings, path.parent)
    study = find_study(open_storage(settings, path.parent, existing=True), settings.study)
    if study is None:
        raise InputError(f"{path} has no study of that name")
    return repr([(t.number, t.state, t.values, t.params, t.user_attrs, t.system_attrs) for t in study.get_trials()])


def flips(run: Path, number: int) -> Counter[str]:
    """Outcomes of reading the database with one flipped bit, at that many places."""
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


def test_flipped_bits_of_the_database_are_refused_or_harmless(run: Path) -> None:
    assert set(flips(run, 25)) == {"loaded", "refused"}


@pytest.mark.thorough
def test_flipped_bits_all_over_the_database(run: Path, record_property: Callable[[str, object], None]) -> None:
    came = flips(run, 300)
    record_property("summary", f"one bit flipped in study.db: {came.total()} cases, {dict(came)}")
    assert set(came) == {"loaded", "refused"}


@pytest.mark.parametrize(
    ("what", "foreign"),
    [
        ("run", "of another program"),
        ("dashboard", "of another study"),
        pytest.param("run", "of another study", marks=pytest.mark.slow),
        pytest.param("dashboard", "of another program", marks=pytest.mark.slow),
    ],
)
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
    result = command(*arguments(what, run, images))
    assert (result.code, result.changed) == (2, set())
    assert str(path) in result.error.splitlines()[-1] or "its database has no mobilevit_xxs" in result.error


def test_a_lost_database_starts_no_new_search(run: Path, images: Path, command: Command) -> None:
    (run / "study.db").unlink()
    result = command(*arguments("run", run, images))
    assert (result.code, result.changed) == (2, set())
    assert result.error.endswith("restore a copy of it, or start another study with --study NAME or --out DIR")


# ---------------------------------------------------------------------------------------------------------------------
# The shared weights


@pytest.mark.long
def test_lost_shared_weights_start_no_new_search(run: Path, images: Path, command: Command) -> None:
    for path in run.glob("supernet.*safetensors"):
        path.unlink()
    result = command(*arguments("run", run, images))
    assert (result.code, result.changed) == (2, set())
    assert "has trials but no shared weights" in result.error


@pytest.mark.parametrize("what", ["export", pytest.param("run", marks=pytest.mark.slow)])
def test_a_flipped_bit_in_the_shared_weights_is_noticed(run: Path, images: Path, command: Command, what: str) -> None:
    path = run / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4  # behind the header: safetensors has no checksum
    path.write_bytes(content)
    result = command(*arguments(what, run, images))
    assert (result.code, result.changed) == (2, set())
    assert "the weights differ from those that were written" in result.error


@pytest.mark.long
def test_weights_of_another_study_are_refused(run: Path, images: Path, command: Command, tmp_path: Path) -> None:
    """Only the tensors differ; the header is that of this study."""
    other = Supernet("mobilevit_xxs", num_classes=3).state_dict()
    with safe_open(run / "supernet.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["ltmsearch"])
    tensors = {name: value.contiguous() for name, value in other.items()}
    described["sha256"] = digest(tensors)
    save_file(tensors, run / "supernet.safetensors", metadata={"ltmsearch": json.dumps(described)})
    for asked in (("export", run, "--weights"), arguments("run", run, images)):
        result = command(*asked)
        assert result.code == 2, result
        assert "Traceback" not in result.error
        assert not {name for name in result.changed if not name.startswith("export/")}


# ---------------------------------------------------------------------------------------------------------------------
# Earlier versions


@pytest.mark.parametrize("what", ["front", "run"])
def test_studies_of_earlier_versions_are_refused(run: Path, images: Path, command: Command, what: str) -> None:
    path = run / "settings.yaml"
    path.write_text(path.read_text().replace("schema_version: 2\n", "schema_version: 1\nval_images: 256\n"))
    result = command(*arguments(what, run, images))
    assert (result.code, result.changed) == (2, set())
    assert "schema_version must be 2 for this ltmsearch, but got 1: an earlier version began" in result.error
    assert result.error.startswith("error: ")
    assert result.error.isprintable()
