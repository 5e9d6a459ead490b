"""A study goes on from another working directory, and with its data in another place."""

import re
import shutil
from pathlib import Path

import pytest
from support.command_line import Interrupt, Notes, image_folder, tiny_vit

from ltmsearch import StudySettings, run_study
from ltmsearch.errors import InputError
from ltmsearch.search.run import Run
from ltmsearch.search.settled import SETTLED


@pytest.fixture
def begun(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images in `data` and an interrupted study in `run`, both named by relative paths."""
    here = tmp_path / "here"
    shutil.copytree(images, here / "data")
    monkeypatch.chdir(here)
    with pytest.raises(KeyboardInterrupt):
        run_study(relative("run", "data"), Interrupt(14))
    assert len(list(here.iterdir())) == 2
    return here


def relative(out: str, data: str) -> StudySettings:
    return tiny_vit(Path(out), data_dir=data, trials=2)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".yaml", ".json", ".db")}


def test_from_another_working_directory(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    notes = Notes()
    result = run_study(relative("../here/run", "../here/data"), notes)
    assert sum(record.state == "scored" and record.label != "plain" for record in result.trials) == 2
    assert not any(line.startswith("the data were in") for line in notes.lines)
    assert list((tmp_path / "there").iterdir()) == []
    settings = Run.open(begun / "run").settings
    assert (settings.out, settings.data_dir) == (str(begun / "run"), str(begun / "data"))


def test_by_its_own_settings_file(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_study(StudySettings.load(begun / "run/settings.yaml"))
    assert result.folder == begun / "run"
    assert len(result.front) >= 1


def test_images_per_pass_are_kept_unless_others_are_given(begun: Path, tmp_path: Path) -> None:
    """Also those of a study that began before they could be set."""

    def passes(**given: int) -> tuple[int, list[str]]:
        notes = Notes()
        run_study(tiny_vit(Path("run"), data_dir="data", trials=2, **given), notes)
        lines = [line for line in notes.lines if line.startswith("scores take")]
        return Run.open(begun / "run").settings.scoring_batch_size, lines

    assert passes() == (64, [])
    assert passes(scoring_batch_size=8) == (
        8,
        ["scores take 8 images at a time from now on, 64 before: they differ by rounding"],
    )
    assert passes() == (8, [])
    file = begun / "run/settings.yaml"
    file.write_text(re.sub(r"^scoring_batch_size: .*\n", "", file.read_text(), flags=re.MULTILINE))
    assert passes() == (32, [])


@pytest.mark.long
def test_with_moved_data(begun: Path, tmp_path: Path) -> None:
    shutil.move(begun / "data", tmp_path / "moved")
    notes = Notes()
    run_study(relative("run", "../moved"), notes)
    (line,) = (line for line in notes.lines if line.startswith("the data were in"))
    assert line.startswith(f"the data were in {begun / 'data'} and are in {tmp_path / 'moved'}, with the same classes")
    assert Run.open("run").settings.data_dir == str(tmp_path / "moved")
    again = Notes()
    run_study(relative("run", "../moved"), again)
    assert not any(line.startswith("the data were in") for line in again.lines)


@pytest.mark.parametrize("place", ["data", "../moved"])
def test_other_numbers_of_images_are_refused(begun: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(begun / "data", tmp_path / "moved")
    (begun / place / "train/cat/0.jpg").unlink()
    before = content(begun / "run")
    with pytest.raises(
        InputError, match="class 'cat' had 6 training and 6 validation images and now has 5 and 6; give the same data"
    ) as refused:
        run_study(relative("run", place))
    assert "\n" not in str(refused.value)
    assert content(begun / "run") == before


def test_other_classes_are_refused(begun: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "other", classes=("cat", "dog", "owl"))
    with pytest.raises(InputError, match=r"--data-dir .*other must be the data .* its classes differ in 'owl'"):
        run_study(relative("run", "../other"))


def test_without_its_record_the_data_may_not_move(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun / "data", tmp_path / "moved")
    (begun / "run" / SETTLED).unlink()
    with pytest.raises(InputError, match=f"has no {SETTLED}, .* so they must be those in"):
        run_study(relative("run", "../moved"))
    run_study(relative("run", "data"))
    assert (begun / "run" / SETTLED).is_file()
