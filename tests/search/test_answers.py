"""The table of answers by image: what follows from it, and its file."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ltmsearch.errors import InputError
from ltmsearch.search.answers import ANSWERS, Answers


def answers(groups: list[int] | None = None) -> Answers:
    """Six images: trial 3 is right on four, trial 12 on two, the plain network on three."""
    return Answers(
        labels=np.array([0, 1, 2, 0, 1, 2]),
        groups=np.arange(6) if groups is None else np.array(groups),
        plain=np.array([0, 1, 2, 1, 2, 0]),
        trials={12: np.array([0, 1, 0, 1, 2, 0]), 3: np.array([0, 1, 0, 0, 1, 0])},
    )


def changed(standard_error: float, independent: float) -> float:
    """A standard error in points with one changed answer more."""
    return math.hypot(standard_error, 100 / independent)


def test_accuracy_difference_and_agreement_by_hand() -> None:
    found = answers()
    assert found.top1().value == pytest.approx(50)
    assert found.top1(3).value == pytest.approx(400 / 6)
    assert found.top1(3).se == pytest.approx(100 * np.std([1, 1, 0, 1, 1, 0], ddof=1) / math.sqrt(6))
    # Against the plain network, trial 3 loses image 2 and gains 3 and 4.
    assert found.difference(3).value == pytest.approx(100 / 6)
    alone = 100 * np.std([0, 0, -1, 1, 1, 0], ddof=1) / math.sqrt(6)
    assert found.difference(3).se == pytest.approx(changed(alone, 6))
    assert found.difference(3, 12).value == pytest.approx(200 / 6)
    assert found.difference(12, 3).value == pytest.approx(-200 / 6)
    # Both give class 0 to the last image: wrong, and the same.
    assert found.agreement(3).value == pytest.approx(300 / 6)
    assert found.agreement(12).value == pytest.approx(500 / 6)


def test_pairing_removes_what_both_networks_share() -> None:
    rng = np.random.default_rng(0)
    labels, plain = rng.integers(0, 10, size=500), rng.integers(0, 3, size=500)
    changed = plain.copy()
    changed[:5] = labels[:5]
    found = Answers(labels=labels, groups=np.arange(500), plain=plain, trials={1: changed})
    assert found.difference(1).se < 0.3 * math.hypot(found.top1().se, found.top1(1).se)


def test_images_without_a_change_do_not_show_equality() -> None:
    found = answers().difference(3, 3)
    assert (found.value, found.se) == (0, pytest.approx(100 / 6))


@pytest.mark.parametrize(("images", "shown"), [(24, False), (384, False), (700, True), (10_000, True)])
def test_how_many_images_without_a_loss_show_that_it_is_small(images: int, shown: bool) -> None:
    """If half a percent of the answers were lost, 600 images would show none in 1 of 20 cases: 0.995^600 = 0.05."""
    right = np.zeros(images, dtype=np.int64)
    found = Answers(labels=right, groups=np.arange(images), plain=right, trials={1: right})
    assert found.is_above(-0.5, 1) == shown
    assert not found.is_above(0, 1)


@pytest.mark.parametrize(("gained", "better"), [(3, False), (6, True)])
def test_few_gains_are_no_improvement(gained: int, better: bool) -> None:
    """Three of three changes for the better have the chance 1/8 between equal networks, and six of six 1/64."""
    labels, plain = np.zeros(1000, dtype=np.int64), np.repeat([0, 1], [800, 200])
    other = plain.copy()
    other[800 : 800 + gained] = 0
    found = Answers(labels=labels, groups=np.arange(1000), plain=plain, trials={1: other, 2: plain})
    assert found.is_above(0, 1) == found.is_above(0, 1, 2) == better


def test_claims_are_false_in_at_most_one_of_twenty_studies() -> None:
    """Networks that lose half a point, or nothing, and change one in a hundred answers beside, of 1000 images."""
    rng, images = np.random.default_rng(0), 1000
    small, better = 0, 0
    for _ in range(600):
        plain = (rng.random(images) < 0.2).astype(np.int64)
        drawn = rng.random(images)
        trials = {
            1: np.where(plain == 0, drawn < (0.005 + 0.002) / 0.8, drawn >= 0.01),
            2: np.where(plain == 0, drawn < 0.002 / 0.8, drawn >= 0.01),
        }
        found = Answers(
            labels=np.zeros(images, dtype=np.int64),
            groups=np.arange(images),
            plain=plain,
            trials={trial: wrong.astype(np.int64) for trial, wrong in trials.items()},
        )
        small += found.is_above(-0.5, 1)
        better += found.is_above(0, 2)
    assert small <= 48, "30 of 600 are expected"
    assert better <= 48


def test_groups_count_as_their_images_agree() -> None:
    """Five copies of each image say as much as one; images that only share a number as much as all."""
    rng = np.random.default_rng(0)
    right = rng.random(300) < 0.8
    copies = np.repeat(right, 5).astype(np.int64)
    groups = np.repeat(np.arange(300), 5)
    labels = np.ones(1500, dtype=np.int64)
    assert Answers(labels=labels, groups=groups, plain=copies).independent == pytest.approx(300, rel=0.01)
    alone = (rng.random(1500) < 0.8).astype(np.int64)
    assert Answers(labels=labels, groups=groups, plain=alone).independent > 1100
    assert Answers(labels=labels, groups=np.arange(1500), plain=alone).independent == 1500
    assert Answers(labels=labels, groups=groups, plain=labels).independent == 300, "all right: unknown, so the fewest"
    assert Answers(labels=labels, groups=0 * groups, plain=alone).independent == 1
    assert Answers(labels=labels[:1], groups=groups[:1], plain=labels[:1]).independent == 1


def test_errors_respect_groups() -> None:
    pairs = answers([0, 0, 1, 1, 2, 2])
    # Differences of trial 3 in pairs: 0, 0 and 1, whose means are 0, 0 and 1/2.
    paired = 100 * np.std([0, 0, 0.5], ddof=1) / math.sqrt(3)
    assert pairs.difference(3).se == pytest.approx(changed(paired, pairs.independent))
    assert pairs.difference(3).value == answers().difference(3).value


def test_unknown_trials_are_refused() -> None:
    with pytest.raises(KeyError):
        answers().difference(7)


def test_file_keeps_everything(tmp_path: Path) -> None:
    written = answers([5, 5, 5, 2, 2, 2**62])
    path = written.save(tmp_path / ANSWERS)
    assert path.read_text().splitlines()[:2] == ["image,group,label,plain,trial_3,trial_12", "0,5,0,0,0,0"]
    read = Answers.load(path)
    for name in ("labels", "groups", "plain"):
        assert np.array_equal(getattr(read, name), getattr(written, name)), name
        assert getattr(read, name).dtype == np.int64
    assert read.trials.keys() == {3, 12}
    assert all(np.array_equal(read.trials[trial], written.trials[trial]) for trial in (3, 12))
    assert read.difference(3, 12) == written.difference(3, 12)
    assert read.save(tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_no_finalist_is_a_table_too(tmp_path: Path) -> None:
    found = answers()
    path = Answers(labels=found.labels, groups=found.groups, plain=found.plain).save(tmp_path / ANSWERS)
    assert Answers.load(path).trials == {}


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "another table": (lambda text: "a,b\n1,2\n", "must have the columns image,group,label,plain"),
    "empty": (lambda text: "", "must have the columns image,group,label,plain"),
    "a blank line first": (lambda text: "\n" + text, "must have the columns"),
    "no rows": (lambda text: text.partition("\n")[0] + "\n", "numbered from 0, but there are 0 rows"),
    "cut in a row": (lambda text: text[:-4], "a row must have"),
    "cut in a number": (lambda text: text[:-1], "its last line is truncated"),
    "a row less": (lambda text: text.replace("2,2,2,2,0,0\n", ""), "numbered from 0, but there are 5 rows"),
    "a row twice": (lambda text: text + text.splitlines()[-1] + "\n", "each image must be unique"),
    "a word for a class": (lambda text: text.replace("1,1,1,1,1,1", "1,1,1,cat,1,1"), "damaged: invalid literal"),
    "an empty class": (lambda text: text.replace("1,1,1,1,1,1", "1,1,1,,1,1"), "damaged: invalid literal"),
    "a fraction": (lambda text: text.replace("1,1,1,1,1,1", "1,1,1,1.5,1,1"), "damaged: invalid literal"),
    "a negative class": (lambda text: text.replace("1,1,1,1,1,1", "1,1,1,-1,1,1"), r"must be in \[0, 2\^63\)"),
    "a huge class": (lambda text: text.replace("1,1,1,1,1,1", f"1,1,1,{2**63},1,1"), r"must be in \[0, 2\^63\)"),
    "a trial twice": (lambda text: text.replace("trial_12", "trial_3"), "must have the columns"),
    "a column of something else": (lambda text: text.replace("trial_12", "colour"), "must have the columns"),
    "a trial without a number": (lambda text: text.replace("trial_12", "trial_x"), "damaged: invalid literal"),
}


@pytest.mark.parametrize(("damage", "rule"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_named_in_one_line(tmp_path: Path, damage: Callable[[str], str], rule: str) -> None:
    path = answers().save(tmp_path / ANSWERS)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=rule) as caught:
        Answers.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_missing(tmp_path: Path) -> None:
    path = tmp_path / ANSWERS
    with pytest.raises(InputError, match="must be a CSV file, but does not exist"):
        Answers.load(path)
    path.write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(InputError, match="in UTF-8") as caught:
        Answers.load(path)
    assert "\n" not in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=ANSWERS):
        Answers.load(path)
