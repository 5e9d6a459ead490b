"""The built-in digits: determinism, disjoint splits, and pictures that show what their scene says."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ltmsearch.data.digits import DEFAULT_CLUTTER, SPLITS, Clutter, ClutteredDigits, draw
from ltmsearch.data.loading import load_data
from ltmsearch.data.sources import DIGITS_TRAIN_IMAGES, Scoring


def digits(split="train", *, img_size=64, seed=0, length=200, clutter=DEFAULT_CLUTTER):
    return ClutteredDigits(split, img_size=img_size, seed=seed, length=length, clutter=clutter)


def pixels(image):
    return np.asarray(image).astype(int)


def test_an_image_depends_on_seed_split_and_index_alone():
    one, label = digits()[7]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    same, same_label = digits(length=5000)[7]
    assert label == same_label
    assert np.array_equal(one, same)
    for other in (digits(seed=1)[7], *(digits(split)[7] for split in SPLITS[1:]), digits()[17]):
        assert other[1] == label  # the same class, so a difference is not the label's
        assert not np.array_equal(one, other[0])


def test_no_bundled_digit_is_in_two_splits_whole_or_in_part():
    clutter = replace(DEFAULT_CLUTTER, fragments=20)  # many draws, so that an overlap would show
    used = {}
    for split in SPLITS:
        scenes = digits(split, length=400, clutter=clutter)
        used[split] = {patch.glyph for index in range(400) for patch in scenes.scene(index)}
    assert sum(map(len, used.values())) == len(set.union(*used.values()))
    # An eighth of 1,797 each; 8,400 draws reach nearly all of every part.
    for split, eighths in (("train", 5), ("validation", 1), ("search", 1), ("test", 1)):
        assert len(used[split]) == pytest.approx(1797 * eighths / 8, rel=0.05)
    truth = load_digits().target
    rank = {glyph: (truth[:glyph] == truth[glyph]).sum() for glyph in range(1797)}
    places = {split: {rank[glyph] % 8 for glyph in used[split]} for split in SPLITS}
    assert places == {"train": {0, 1, 2, 4, 6}, "validation": {3}, "search": {5}, "test": {7}}


@pytest.mark.parametrize("split", SPLITS)
def test_groups_are_the_whole_digits_of_the_scenes(split, monkeypatch):
    scenes = digits(split)
    whole = [scenes.scene(index)[0].glyph for index in range(200)]
    monkeypatch.setattr("ltmsearch.data.digits.draw", None)  # no pixels are drawn
    assert scenes.groups.dtype == np.int64
    assert scenes.groups.tolist() == whole
    assert digits(split, length=0).groups.shape == (0,)


@pytest.mark.parametrize("split", SPLITS)
def test_label_is_of_the_whole_digit_and_classes_alternate(split):
    truth = load_digits().target
    data = digits(split)
    labels = [data[index][1] for index in range(len(data))]
    assert labels == [truth[data.scene(index)[0].glyph] for index in range(len(data))]
    assert labels == data.labels.tolist()
    assert np.bincount(labels).tolist() == [20] * 10


def test_fragments_are_cut_from_other_digits():
    scenes = digits(clutter=replace(DEFAULT_CLUTTER, fragments=30))
    for index in range(200):
        whole, *fragments = scenes.scene(index)
        assert len(fragments) == 30
        assert whole.glyph not in {fragment.glyph for fragment in fragments}


def test_patches_lie_within_the_canvas_and_the_bundled_digit():
    clutter = Clutter(min_scale=0.3, max_scale=0.9, fragments=4, fragment_scale=0.5)
    scenes = digits(clutter=clutter)
    sides = []
    for index in range(200):
        whole, *fragments = scenes.scene(index)
        assert whole.crop == (0, 0, 8)
        sides.append(whole.place[2])
        for patch in (whole, *fragments):
            for origin in patch.place[:2]:
                assert 0 <= origin <= 1 - patch.place[2]
            for origin in patch.crop[:2]:
                assert 0 <= origin <= 8 - patch.crop[2]
        for fragment in fragments:  # half as wide, and of half the digit: enlarged alike
            assert fragment.place[2] == pytest.approx(whole.place[2] / 2)
            assert fragment.crop[2] == 4
    assert 0.3 <= min(sides) < 0.35  # 200 uniform draws come near both ends
    assert 0.85 < max(sides) <= 0.9


def test_the_same_scene_shows_at_every_size():
    small, large = digits(img_size=64), digits(img_size=192)
    difference, control = [], []
    for index in range(20):
        assert small.scene(index) == large.scene(index)
        shrunk = large[index][0].resize((64, 64), Image.Resampling.BOX)
        difference.append(np.abs(pixels(shrunk) - pixels(small[index][0])).mean())
        control.append(np.abs(pixels(shrunk) - pixels(small[index + 10][0])).mean())
    assert np.mean(difference) < np.mean(control) / 5


def test_a_picture_is_the_brightest_of_its_patches():
    scene = digits(img_size=80).scene(4)
    alone = [pixels(draw([patch], 80)) for patch in scene]
    assert len(alone) == 1 + DEFAULT_CLUTTER.fragments
    assert np.array_equal(pixels(draw(scene, 80)), np.max(alone, axis=0))


def test_the_whole_digit_is_the_bundled_one_at_its_place():
    (patch,) = digits(clutter=replace(DEFAULT_CLUTTER, fragments=0)).scene(3)
    picture = pixels(draw([replace(patch, place=(0.5, 0.25, 0.5))], 16))  # 8 pixels wide: no enlargement
    glyph = np.rint(load_digits().images[patch.glyph] * 255 / 16)
    assert np.array_equal(picture[4:12, 8:16], glyph)
    assert picture.sum() == glyph.sum()  # and black elsewhere


@pytest.mark.parametrize("index", [-1, 200])
def test_out_of_range_indices_are_refused(index):
    with pytest.raises(IndexError):
        digits()[index]


def load(**changes):
    sizes = {"img_size": 32, "val_images": 30, "calibration_images": 4}
    return load_data(dataset="digits", data_dir=None, mean=(0.0,) * 3, std=(1.0,) * 3, seed=5, **sizes, **changes)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_loaded_scenes_come_as_drawn_whole_and_unmirrored(part):
    data = load(crop_pct=0.8)
    length = {"train": DIGITS_TRAIN_IMAGES, "validation": 30}[part]
    scenes = digits(part, img_size=32, seed=5, length=length)
    drawn = {image.tobytes(): label for image, label in (scenes[index] for index in range(min(length, 2000)))}
    train, validation = data.train_batches(batch_size=50, steps=2, seed=0), data.validation_batches(batch_size=50)
    found = total = 0
    for images, labels in train if part == "train" else validation:
        assert torch.equal(images[:, 0], images[:, 2])
        for image, label in zip((images[:, 0] * 255).round().byte(), labels.tolist(), strict=True):
            found += drawn.get(image.numpy().tobytes()) == label
            total += 1
    assert found == 30 if part == "validation" else 5 < found < 50 < total  # about a fifth of the 100 were looked for


def test_validation_is_balanced_and_of_the_given_size():
    data = load()
    labels = [label for _, batch in data.validation_batches(batch_size=8) for label in batch.tolist()]
    assert data.validation_size == 30
    assert np.bincount(labels).tolist() == [3] * 10
    assert sorted(labels[:10]) == list(range(10))
    assert data.description == "digits: 10000 training and 30 validation images in 10 classes, kept in memory"


HELD_OUT = {"search_images": 20, "report_images": 50}


def drawn(split, length):
    """Label and group of each image of a split as drawn, by its bytes."""
    scenes = digits(split, img_size=32, seed=5, length=length)
    images = (image.tobytes() for image, _ in (scenes[index] for index in range(length)))
    return dict(zip(images, zip(scenes.labels.tolist(), scenes.groups.tolist(), strict=True), strict=True))


def matched(batches, wanted):
    """What `wanted` has for each image, which is removed from it."""
    found = []
    for images, labels in batches:
        for image, label in zip((images[:, 0] * 255).round().byte(), labels.tolist(), strict=True):
            found.append(wanted.pop(image.numpy().tobytes()))
            assert found[-1][0] == label
    return found


def test_held_out_images_are_drawn_from_their_splits():
    data, search, test = load(**HELD_OUT), drawn("search", 20), drawn("test", 50)
    searched = matched(data.search_batches(batch_size=8), search)
    reported = matched(data.report_batches(batch_size=8), test)
    assert search == test == {}  # all were found
    assert data.search_groups().tolist() == [group for _, group in searched]
    assert data.report_groups().tolist() == [group for _, group in reported]


def test_the_test_split_can_be_scored():
    data, test = load(scoring=Scoring(split="test", class_names=None)), drawn("test", 30)
    matched(data.validation_batches(batch_size=8), test)
    assert test == {}
    assert data.title == "digits, test"


def test_held_out_images_do_not_change_training():
    data, plain = load(**HELD_OUT), load()
    train = {"batch_size": 8, "steps": 3, "seed": 0}
    for batches, others in (
        (data.train_batches(**train), plain.train_batches(**train)),
        (data.validation_batches(batch_size=8), plain.validation_batches(batch_size=8)),
    ):
        for one, other in zip(batches, others, strict=True):
            assert torch.equal(one[0], other[0])
    assert (data.training_size, data.set_aside, data.report_name) == (10_000, frozenset(), "50 images of test")
    assert "digits: 10,000 training, 20 search, 30 validation and 50 report images in 10 classes" in data.description
