"""Loading data: which images are used, and batches that depend on their seed alone."""

import pickle
import random
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import CLASSES, FULL, SPOILT, STREAM, colours, make_folder, noise, open_data, same, seen
from timm.data import create_transform

from ltmsearch.callbacks import Callbacks
from ltmsearch.data.subsets import balanced
from ltmsearch.data.transforms import Augmentation
from ltmsearch.errors import InputError

pytestmark = [  # of tests with two workers: later Pythons on forking beside threads, torch on a machine with one CPU
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class TestFolder:
    def test_batches_have_the_promised_shapes_types_and_range(self, folder):
        data = open_data(folder, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        for images, labels in (
            *data.train_batches(batch_size=4, steps=2, seed=0),
            *data.validation_batches(batch_size=4),
        ):
            assert images.shape == (4, 3, 16, 16)
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert images.is_contiguous()
            assert images.min() >= -2
            assert images.max() <= 2
        assert labels.shape == (4,)
        assert data.class_names == CLASSES
        assert data.validation_size == 8

    @pytest.mark.parametrize("name", ["validation", "val", "valid"])
    def test_the_validation_folder_has_any_of_its_names(self, tmp_path, name):
        data = open_data(make_folder(tmp_path, {"train": FULL["train"], name: {"ant": 1, "bee": 1}}))
        assert seen(data.validation_batches(batch_size=8)) == [(0, 0), (1, 0)]

    def test_a_class_may_be_called_like_a_split(self, tmp_path):
        data = open_data(make_folder(tmp_path, {"train": {"train": 2, "val": 3}, "val": {"train": 1, "val": 1}}))
        assert data.class_names == ("train", "val")
        assert "5 training and 2 validation images" in data.description

    def test_labels_go_by_name_where_validation_lacks_a_class(self, tmp_path):
        data = open_data(make_folder(tmp_path, {"train": FULL["train"], "validation": {"bee": 2, "cat": 2}}))
        ((images, labels),) = data.validation_batches(batch_size=8)
        assert labels.tolist() == [red for red, _ in colours(images)]
        assert set(labels.tolist()) == {1, 2}
        for images, labels in data.train_batches(batch_size=5, steps=3, seed=0):
            assert labels.tolist() == [red for red, _ in colours(images)]

    def test_empty_validation_class_folder_is_a_missing_class(self, folder):
        shutil.rmtree(folder / "validation" / "ant")
        (folder / "validation" / "ant").mkdir()
        assert {red for red, _ in seen(open_data(folder).validation_batches(batch_size=8))} == {1, 2}

    def test_the_validation_subset_is_balanced_fixed_and_in_turns(self, tmp_path):
        root = make_folder(tmp_path, {"train": FULL["train"], "validation": {"ant": 9, "bee": 9, "cat": 1}})
        data = open_data(root, val_images=9)
        images = seen(data.validation_batches(batch_size=4))
        assert Counter(red for red, _ in images) == {0: 4, 1: 4, 2: 1}
        assert len(set(images)) == 9
        assert sorted(red for red, _ in images[:3]) == [0, 1, 2]
        assert seen(data.validation_batches(batch_size=5, limit=5)) == images[:5]
        assert seen(open_data(root, val_images=9).validation_batches(batch_size=9)) == images
        assert seen(open_data(root, val_images=9, seed=1).validation_batches(batch_size=9)) != images
        assert data.validation_size == 9

    def test_calibration_is_a_fixed_choice_of_training_images(self, folder):
        data = open_data(folder, calibration_images=5)
        batches = list(data.calibration_batches(batch_size=2))
        assert same(batches, data.calibration_batches(batch_size=2))
        first = [images for images, _ in batches]
        assert [len(images) for images in first] == [2, 2, 1]
        assert torch.cat(first)[:, 2].eq(1).all()  # blue: of the training split
        assert sorted(Counter(red for red, _ in colours(torch.cat(first))).values()) == [1, 2, 2]

    def test_progress_counts_the_training_images(self, folder):
        calls = []
        callbacks = Callbacks()
        callbacks.phase = lambda name, total: calls.append((name, total))
        callbacks.advance = calls.append
        open_data(folder, callbacks=callbacks)
        assert calls == [("reading images", 15), *range(1, 16)]

    def test_the_description_is_one_line_that_says_what_there_is(self, folder):
        kept = open_data(folder).description
        assert "15 training and 8 validation images in 3 classes, kept in memory" in kept
        assert "read as needed" in open_data(folder, **STREAM).description
        odd = make_folder(folder / "line\nbreak")
        assert open_data(odd).description.isprintable()


class TestUnreadable:
    @pytest.mark.parametrize("storage", [{}, STREAM, STREAM | {"workers": 2}], ids=["kept", "streamed", "workers"])
    def test_images_are_left_out_and_named_not_replaced(self, spoilt, storage):
        data = open_data(spoilt, **storage)
        trained = list(data.train_batches(batch_size=7, steps=4, seed=0))  # 14 readable ones, so twice round
        assert data.skipped == SPOILT
        assert [len(labels) for _, labels in trained] == [7] * 4
        readable = {(red, green) for red, number in enumerate((5, 4, 6)) for green in range(number)} - {(1, 0)}
        assert Counter(seen(trained)) == dict.fromkeys(readable, 2)
        validated = seen(data.validation_batches(batch_size=3))
        assert sorted(validated) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 2)]
        assert data.validation_size == 7
        assert "3 unreadable skipped: 'train/bee/0.png', 'train/cat/cut.jpg'" in data.description

    def test_the_next_of_its_class_takes_the_place_in_a_subset(self, spoilt):
        images = seen(open_data(spoilt, val_images=6).validation_batches(batch_size=6))
        assert Counter(red for red, _ in images) == {0: 2, 1: 2, 2: 2}

    @pytest.mark.parametrize("storage", [{}, STREAM], ids=["kept", "streamed"])
    def test_each_class_needs_a_readable_image(self, folder, storage):
        for path in (folder / "train" / "bee").iterdir():
            path.write_text("not an image")
        with pytest.raises(InputError, match="each class needs a readable training image, but there is none of 'bee'"):
            open_data(folder, **storage)

    def test_validation_needs_a_readable_image(self, tmp_path):
        root = make_folder(tmp_path, {"train": FULL["train"], "validation": {"ant": 1}})
        (root / "validation" / "ant" / "0.png").write_text("not an image")
        with pytest.raises(InputError, match=r"validation needs a readable image.*'validation/ant/0.png'"):
            open_data(root)

    def test_images_lost_after_loading_end_evaluation_and_training(self, folder):
        data = open_data(folder, **STREAM)
        shutil.rmtree(folder / "validation" / "bee")
        with pytest.raises(InputError, match=r"'validation/bee/0.png'"):
            list(data.validation_batches(batch_size=4))
        shutil.rmtree(folder / "train")
        with pytest.raises(InputError, match="too few images are readable"):
            list(data.train_batches(batch_size=4, steps=100, seed=0))


class TestStorage:
    @pytest.mark.parametrize("mode", ["center", "squash", "border"])
    @pytest.mark.parametrize("memory", [{}, STREAM], ids=["kept", "streamed"])
    def test_evaluation_gives_the_bits_of_timms_transform(self, photos, mode, memory):
        normal = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "crop_pct": 0.77, "interpolation": "bicubic"}
        normal["crop_mode"] = mode
        expected = create_transform(16, **normal)
        data = open_data(photos, **normal, **memory)
        wanted = []
        for path in (photos / "validation").glob("*/*"):
            with Image.open(path) as image:
                wanted.append(expected(image.convert("RGB")).numpy().tobytes())
        got = [image.numpy().tobytes() for images, _ in data.validation_batches(batch_size=3) for image in images]
        assert sorted(got) == sorted(wanted)

    def test_neither_memory_nor_workers_change_a_bit(self, photos):
        kept, streamed = open_data(photos, crop_pct=0.8), open_data(photos, crop_pct=0.8, **STREAM)
        workers = open_data(photos, crop_pct=0.8, workers=2)
        assert kept.train.pixel_cache
        assert streamed.train.pixel_cache is None
        train = {"batch_size": 4, "steps": 5, "seed": 3}
        for other in (streamed, workers):
            assert same(kept.validation_batches(batch_size=3), other.validation_batches(batch_size=3))
            assert same(kept.train_batches(**train), other.train_batches(**train))
            assert same(kept.calibration_batches(batch_size=3), other.calibration_batches(batch_size=3))

    def test_images_are_kept_up_to_the_limit_as_estimated(self, folder):
        # 40 × 30 pixels shrink to a short side of 16 / 0.8 = 20, so a long one of 26, at three bytes a pixel.
        needed = (15 + 6) * 20 * 26 * 3
        with_tensors = needed + (6 + 4) * 16 * 16 * 3
        streamed, kept, less, enough = (
            open_data(folder, crop_pct=0.8, val_images=6, memory_limit_bytes=limit)
            for limit in (needed - 1, needed, with_tensors - 1, with_tensors)
        )
        assert kept.train.estimated_bytes(15) + kept.validation.estimated_bytes(6) == needed
        assert sum(pixels.nbytes for pixels in kept.train.pixel_cache.values()) == 15 * 20 * 26 * 3
        assert streamed.train.pixel_cache is None
        assert kept.workers == 0
        assert streamed.workers > 0
        assert less.train.tensor_cache is None
        assert enough.train.tensor_cache is not None
        assert same(enough.validation_batches(batch_size=4), less.validation_batches(batch_size=4))

    def test_evaluation_tensors_are_cached_training_ones_are_not(self, photos):
        data = open_data(photos, crop_pct=0.8)
        first, fixed = list(data.validation_batches(batch_size=3)), list(data.calibration_batches(batch_size=3))
        list(data.train_batches(batch_size=5, steps=3, seed=0))
        assert set(data.validation.tensor_cache) == set(range(7))
        assert set(data.train.tensor_cache) == {index for index, _ in data.calibration_keys}
        data.transforms.evaluation.transforms = None  # whoever called it now would fail
        assert same(first, data.validation_batches(batch_size=3))
        assert same(fixed, data.calibration_batches(batch_size=3))

    def test_workers_can_be_given_the_images_by_pickle(self, folder):
        """As processes that are not forked are."""
        data = open_data(folder)
        images, transform = pickle.loads(pickle.dumps((data.train, data.transforms.train)))
        data.train, expected = images, list(data.train_batches(batch_size=4, steps=2, seed=0))
        data.transforms = replace(data.transforms, train=transform)
        assert same(data.train_batches(batch_size=4, steps=2, seed=0), expected)


class TestSeeds:
    def test_a_seed_gives_the_same_bits_and_another_seed_others(self, folder):
        for index in range(3):
            noise(folder / "train" / CLASSES[index] / "noise.png", (40, 30), seed=index)
        data, twin = open_data(folder), open_data(folder)
        first = list(data.train_batches(batch_size=6, steps=6, seed=1))
        assert same(first, data.train_batches(batch_size=6, steps=6, seed=1))
        assert same(first, twin.train_batches(batch_size=6, steps=6, seed=1))
        assert not same(first, data.train_batches(batch_size=6, steps=6, seed=2))

    def test_augmentation_differs_between_epochs_and_seeds(self, tmp_path):
        for split in ("train", "validation"):
            for name in ("ant", "bee"):
                (tmp_path / split / name).mkdir(parents=True)
                noise(tmp_path / split / name / "0.png", (100, 80), seed=ord(name[0]))
        data = open_data(tmp_path, img_size=64)
        images = [
            image.numpy().tobytes()
            for seed in (0, 1)
            for batch, _ in data.train_batches(batch_size=2, steps=10, seed=seed)
            for image in batch
        ]
        assert len(set(images)) == 40

    @pytest.mark.parametrize("steps", [0, 1, 4, 7])
    def test_there_are_exactly_as_many_steps_as_asked_for(self, folder, steps):
        batches = list(open_data(folder).train_batches(batch_size=4, steps=steps, seed=0))
        assert [len(labels) for _, labels in batches] == [4] * steps

    def test_every_image_comes_once_before_one_comes_again(self, folder):
        images = seen(open_data(folder).train_batches(batch_size=5, steps=9, seed=0))
        rounds = [images[start : start + 15] for start in (0, 15, 30)]
        assert [len(set(one)) for one in rounds] == [15, 15, 15]
        assert rounds[0] != rounds[1] != rounds[2]

    @pytest.mark.parametrize("storage", [{}, STREAM, STREAM | {"workers": 1}], ids=["kept", "streamed", "workers"])
    def test_the_global_random_states_neither_matter_nor_change(self, folder, storage):
        def states():
            return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

        before = states()
        data = open_data(folder, **storage)
        expected = list(data.train_batches(batch_size=4, steps=5, seed=0))
        list(data.validation_batches(batch_size=4))
        list(data.calibration_batches(batch_size=4))
        assert states() == before
        got = []
        for batch in data.train_batches(batch_size=4, steps=5, seed=0):
            got.append(batch)
            random.random(), np.random.rand(), torch.rand(1)  # as dropout or a sampler would
            between = states()
        assert states() == between
        assert same(got, expected)

    def test_iterators_do_not_disturb_one_another(self, folder):
        data = open_data(folder)
        one, two = ({"batch_size": 4, "steps": 6, "seed": seed} for seed in (1, 2))
        pairs = list(zip(data.train_batches(**one), data.train_batches(**two), strict=True))
        assert same((left for left, _ in pairs), data.train_batches(**one))
        assert same((right for _, right in pairs), data.train_batches(**two))


def test_balanced_is_taking_turns():
    labels = np.random.default_rng(0).choice([0, 2, 3], size=50, p=[0.7, 0.2, 0.1])
    excluded = set(range(0, 50, 7))
    for number in (0, 1, 7, 20, 50, 80):
        chosen = balanced(labels, number, seed=1, without=excluded)
        left = Counter(labels[[index for index in range(50) if index not in excluded]].tolist())
        expected = Counter()
        while sum(expected.values()) < min(number, 50 - len(excluded)):  # by definition: a round for each who has one
            for label in sorted(left):
                if left[label] > expected[label] and sum(expected.values()) < number:
                    expected[label] += 1
        assert Counter(labels[chosen].tolist()) == +expected
        assert len(set(chosen)) == len(chosen)
        assert not excluded & set(chosen)
        assert chosen == balanced(labels, 50, seed=1, without=excluded)[:number]
    assert balanced(labels, 50, seed=2, without=excluded) != balanced(labels, 50, seed=1, without=excluded)


STRONG = Augmentation(
    scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, color_jitter=0.4, auto_augment="rand-m9-mstd0.5",
    re_prob=0.5, re_mode="pixel", re_count=1,
)  # fmt: skip


class TestAugmentation:
    """A full training's images: as random as timm makes them, and the same again for the same seed."""

    def test_seed_alone_determines_augmented_images(self, photos):
        train = {"batch_size": 4, "steps": 4, "seed": 3}
        first = list(open_data(photos, augmentation=STRONG).train_batches(**train))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(99)
        before = np.random.get_state()[1].copy()
        assert same(first, open_data(photos, augmentation=STRONG, **{**STREAM, "workers": 2}).train_batches(**train))
        assert np.array_equal(np.random.get_state()[1], before)
        assert not same(first, open_data(photos, augmentation=STRONG).train_batches(**{**train, "seed": 4}))

    @pytest.mark.parametrize(
        "change", [{"auto_augment": None}, {"re_prob": 0.0}, {"hflip": 0.0}, {"scale": (1.0, 1.0)}]
    )
    def test_every_key_matters(self, photos, change):
        train = {"batch_size": 4, "steps": 4, "seed": 3}
        strong = list(open_data(photos, augmentation=STRONG).train_batches(**train))
        assert not same(strong, open_data(photos, augmentation=replace(STRONG, **change)).train_batches(**train))

    def test_validation_and_calibration_stay_as_they_are(self, photos):
        plain, strong = open_data(photos), open_data(photos, augmentation=STRONG)
        assert same(plain.validation_batches(batch_size=3), strong.validation_batches(batch_size=3))
        assert same(plain.calibration_batches(batch_size=3), strong.calibration_batches(batch_size=3))

    def test_crops_are_taken_from_the_original(self, photos):
        """Not from what is left of it after the evaluation's resize: small crops would be blurred."""
        kept = open_data(photos, augmentation=STRONG).train.pixel_cache
        proxy = open_data(photos).train.pixel_cache
        assert min(kept[0].shape[:2]) > min(proxy[0].shape[:2])

    def test_digits_are_neither_cropped_nor_mirrored(self):
        text = repr(open_data(None, dataset="digits", augmentation=STRONG).transforms.train)
        assert "scale=(1.0, 1.0)" in text
        assert "Flip" not in text
        assert "RandAugment" in text


class TestShards:
    """Processes that share the batches."""

    @pytest.mark.parametrize("unreadable", [False, True])
    def test_together_they_see_what_one_process_sees(self, folder, unreadable):
        if unreadable:
            (folder / "train" / "bee" / "0.png").write_text("not an image")
        one = open_data(folder, augmentation=None)
        whole = list(one.train_batches(batch_size=6, steps=2, seed=5))
        parts = [list(open_data(folder).train_batches(batch_size=3, steps=2, seed=5, shard=(i, 2))) for i in range(2)]
        for batch, left, right in zip(whole, *parts, strict=True):
            together = torch.cat((left[0], right[0])), torch.cat((left[1], right[1]))
            if not unreadable:  # else what moves up may come from another batch
                assert sorted(together[1].tolist()) == sorted(batch[1].tolist())
                assert {row.numpy().tobytes() for row in together[0]} == {row.numpy().tobytes() for row in batch[0]}
            assert len(together[1]) == 6

    def test_validation_images_are_split(self, folder):
        data = open_data(folder)
        whole = seen(data.validation_batches(batch_size=3))
        parts = [seen(data.validation_batches(batch_size=3, shard=(i, 3))) for i in range(3)]
        assert sorted(colour for part in parts for colour in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
