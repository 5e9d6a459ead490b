"""Splits and class maps as a user has them: names, order of classes, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.images import make_folder, open_data, seen
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_image_folder import find_images_and_targets

from ltmsearch.data.layout import DataLayout, read_class_map
from ltmsearch.data.sources import Scoring, _by_map
from ltmsearch.errors import InputError

SPLITS = {
    "images/mine": {"ant": 2, "bee": 3, "cat": 1}, "images/held": {"ant": 2, "bee": 1}, "last": {"cat": 2, "ant": 1},
}  # fmt: skip
OWN: dict[str, Any] = {"train_split": "images/mine", "val_split": "images/held"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos", SPLITS)


def class_map(folder: Path, text: str) -> Path:
    (folder / "map.txt").write_text(text)
    return folder / "map.txt"


def test_splits_are_folders_in_the_data(photos: Path) -> None:
    data = open_data(photos, layout=DataLayout(**OWN))
    assert (data.training_size, data.validation_size) == (6, 3)
    assert data.title.endswith(", images/held")
    test = open_data(
        photos,
        layout=DataLayout(train_split="images/mine", test_split="last"),
        scoring=Scoring(split="test", class_names=None),
    )
    assert sorted(seen(test.validation_batches(batch_size=4))) == [(0, 0), (2, 0), (2, 1)]
    assert test.title.endswith(", last")


def test_a_class_map_orders_classes_as_in_timm(photos: Path, tmp_path: Path) -> None:
    """Also a class without a folder keeps its number; images in other folders are left out and counted."""
    path = class_map(tmp_path, "yak\ncat\n ant \n\n")
    data = open_data(photos, layout=DataLayout(**OWN, class_map=path))
    assert data.class_names == ("yak", "cat", "ant")
    assert read_class_map(path) == data.class_names
    timms, _ = find_images_and_targets(str(photos / "images/mine"), class_to_idx=load_class_map(str(path)))
    assert dict(data.train.files) == dict(timms)
    assert any("4 files left out: 4 in folders that the class map lacks, 'bee'" in note for note in data.notes)
    batches = list(data.validation_batches(batch_size=8))
    assert [labels.tolist() for _, labels in batches] == [[2, 2]]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"train_split": "images/none"}, r"must contain images/none/, but 'images' contains 'held', 'mine'$"),
        ({"train_split": "images/mine", "val_split": "x"}, r"must contain x/, but it contains 'images', 'last'$"),
        ({"train_split": "/etc"}, "--train-split must be the name of a split, or a folder in the data folder .*'/etc'"),
        ({"val_split": "../a"}, "--val-split must be"),
        ({"test_split": ""}, "--test-split must be"),
    ],
)
def test_splits_that_cannot_be_are_refused(photos: Path, layout: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(photos, layout=DataLayout(**layout))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yak\nzebra\n", "must contain images in class folders of the class map, 'yak', 'zebra', but it contains none"),
        ("ant\nbee\nant", "map.txt:3: a class must be in one line, but 'ant' is also in line 1"),
        ("ant\n\nbee", "line 2 is empty"),
        ("ant", "of at least two, but it has 1"),
    ],
)
def test_class_maps_that_do_not_fit_are_refused(photos: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_data(photos, layout=DataLayout(**OWN, class_map=class_map(tmp_path, text)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "it cannot be read: No such file"),
        ("map.pkl", b"", "it ends in .pkl; a pickle is not read"),
        ("map", b"ant\nbee", "it ends in nothing"),
        ("map.txt", b"\xff\xfe", "byte 0 is not UTF-8"),
    ],
)
def test_files_that_are_no_class_maps_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_class_map(tmp_path / name)


def test_other_data_sets_are_numbered_by_a_class_map() -> None:
    labels = np.array([0, 2, 2])
    assert _by_map(labels, ("ant", "bee", "cat"), ("cat", "yak", "ant"), "'x'").tolist() == [2, 0, 0]
    with pytest.raises(InputError, match="the class map must have the classes of 'x', but lacks 'cat'"):
        _by_map(labels, ("ant", "bee", "cat"), ("bee", "ant"), "'x'")
    with pytest.raises(InputError, match="a split of torchvision's data sets must be train, .*, but got 'tset'"):
        open_data(Path(), dataset="torch/cifar10", layout=DataLayout(test_split="tset"))
    with pytest.raises(InputError, match="the built-in digits have neither other splits nor a class map"):
        open_data(None, dataset="digits", layout=DataLayout(val_split="x"))
