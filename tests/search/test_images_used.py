"""What a study does with its images: nothing trains on those that score trials, choose the front or are reported."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from support.command_line import image_folder, tiny
from support.nets import randomise
from support.sizes import TINY_VIT

from ltmsearch import run_study
from ltmsearch.data.batches import load_batches
from ltmsearch.data.digits import ClutteredDigits
from ltmsearch.data.loading import ImageData
from ltmsearch.data.subsets import ImageSplit
from ltmsearch.models import create_backbone
from ltmsearch.search.run import Run

LEARNT = ("train_batches", "ordered_batches", "calibration_batches")
"""Batches that weights or statistics are taken from."""
HELD_OUT = ("search_batches", "validation_batches", "report_batches")

Used = dict[str, set[object]]
"""Name of a kind of batches → the files in them, or the bundled digits that its images show."""


def contents(images: ImageSplit, index: int) -> set[object]:
    if isinstance(images.dataset, ClutteredDigits):
        return {patch.glyph for patch in images.dataset.scene(index)}
    return {images.files[index][0]}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Used:
    """Filled while a study runs."""
    found: Used = defaultdict(set)
    asked = ""

    def named(name: str) -> Callable[..., Any]:
        original = getattr(ImageData, name)

        def called(self: ImageData, *args: Any, **options: Any) -> Any:
            nonlocal asked
            asked = name
            return original(self, *args, **options)

        return called

    for name in (*LEARNT, *HELD_OUT):
        monkeypatch.setattr(ImageData, name, named(name))

    def spy(images: ImageSplit, transforms: Any, keys: Iterator[tuple[int, int]], *args: Any, **options: Any) -> Any:
        kind = asked

        def noted() -> Iterator[tuple[int, int]]:
            for index, place in keys:
                found[kind] |= contents(images, index)
                yield index, place

        return load_batches(images, transforms, noted(), *args, **options)

    monkeypatch.setattr("ltmsearch.data.loading.load_batches", spy)
    return found


def assert_apart(used: Used) -> None:
    for one, other in combinations(HELD_OUT, 2):
        assert used[one]
        assert not used[one] & used[other], (one, other)
    for kind in LEARNT:
        for held_out in HELD_OUT:
            assert not used[kind] & used[held_out], (kind, held_out)


@pytest.mark.long
def test_digits_are_kept_apart(used: Used, tmp_path: Path) -> None:
    run_study(tiny(tmp_path / "run", **TINY_VIT))
    assert used["train_batches"]
    assert_apart(used)


@pytest.mark.long
@pytest.mark.parametrize("test", [False, True], ids=["half of validation", "test folder"])
def test_images_of_a_folder_are_kept_apart(used: Used, tmp_path: Path, test: bool) -> None:
    """With given weights, whose new classifier is fitted, and a teacher for trials that train."""
    images = image_folder(tmp_path / "images", per_class=12)
    if test:
        (image_folder(tmp_path / "more") / "validation").rename(images / "test")
    net = randomise(create_backbone(TINY_VIT["backbone"], num_classes=0, img_size=64, **TINY_VIT["model_kwargs"]))
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    given = {"checkpoint": str(tmp_path / "weights.safetensors"), "data_dir": str(images), "proxy_steps": 1}
    assert run_study(tiny(tmp_path / "run", **TINY_VIT | given)).probe is not None
    assert len(used["search_batches"]) == 24 // 5
    assert len(used["ordered_batches"]) == 24 - 24 // 5, "the classifier is fitted to all others"
    assert len(used["report_batches"]) == 12
    assert len(used["validation_batches"]) == (24 if test else 12)
    assert_apart(used)
    assert Run.open(tmp_path / "run").answers is not None
