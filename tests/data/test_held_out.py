"""Images set aside for a search and to report on: apart from one another and from training, and otherwise as before."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.images import CLASSES, FULL, STREAM, make_folder, noise, open_data, same, seen

from ltmsearch.data.layout import DataLayout
from ltmsearch.data.loading import ImageData
from ltmsearch.data.sources import Scoring
from ltmsearch.data.subsets import balanced
from ltmsearch.errors import InputError

pytestmark = [  # of tests with two workers: later Pythons on forking beside threads, torch on a machine with one CPU
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

STORAGE = pytest.mark.parametrize("storage", [{}, STREAM, STREAM | {"workers": 2}], ids=["kept", "streamed", "workers"])
TRAIN = {(red, green) for red, number in enumerate((5, 4, 6)) for green in range(number)}
BOTH = {"search_images": 3, "report_images": 100}

Colour = tuple[int, int]


def searched(data: ImageData) -> list[Colour]:
    return seen(data.search_batches(batch_size=4))


def reported(data: ImageData) -> list[Colour]:
    return seen(data.report_batches(batch_size=4))


def validated(data: ImageData) -> list[Colour]:
    return seen(data.validation_batches(batch_size=4))


def per_class(images: list[Colour]) -> dict[int, int]:
    return dict(Counter(red for red, _ in images))


def spoil(path: Path) -> None:
    path.write_text("not an image")


def add_test(root: Path, classes: dict[str, int], name: str = "test") -> Path:
    """Add a test split whose images have 100 more of green than those of other splits of the same number."""
    for label, number in classes.items():
        (root / name / label).mkdir(parents=True)
        for index in range(number):
            colour = (20 * CLASSES.index(label) if label in CLASSES else 200, 100 + index, 0)
            Image.new("RGB", (40, 30), colour).save(root / name / label / f"{index}.png")
    return root


class TestSearch:
    @STORAGE
    def test_no_epoch_contains_a_search_image(self, folder: Path, storage: dict[str, Any]) -> None:
        data = open_data(folder, search_images=3, **storage)
        for images, _ in data.search_batches(batch_size=4):
            assert images[:, 2].eq(1).all()  # blue: of the training split
        trained = seen(data.train_batches(batch_size=12, steps=3, seed=0))
        for start in (0, 12, 24):
            assert sorted(trained[start : start + 12]) == sorted(TRAIN - set(searched(data)))
        assert (data.training_size, data.search_size) == (12, 3)

    def test_calibration_and_samples_contain_none(self, folder: Path) -> None:
        data = open_data(folder, search_images=3, calibration_images=100)
        others = sorted(TRAIN - set(searched(data)))
        assert sorted(seen(data.calibration_batches(batch_size=5))) == others
        every = data.training_sample(100, seed=1)
        assert sorted(seen(data.ordered_batches(every, batch_size=5))) == others
        assert data.training_sample(100, seed=1, of=range(15)) == every
        assert set(data.training_sample(4, seed=1)) < set(every)

    def test_processes_share_the_other_images(self, folder: Path) -> None:
        data = open_data(folder, search_images=3)
        whole = seen(data.train_batches(batch_size=12, steps=2, seed=5))
        parts = [seen(data.train_batches(batch_size=6, steps=2, seed=5, shard=(number, 2))) for number in (0, 1)]
        assert sorted(parts[0] + parts[1]) == sorted(whole)

    def test_training_ends_once_all_others_are_lost(self, folder: Path) -> None:
        data = open_data(folder, search_images=3, **STREAM)
        kept = {data.train.files[index][0] for index in data.set_aside}
        for path, _ in data.train.files:
            if path not in kept:
                Path(path).unlink()
        with pytest.raises(InputError, match="too few images are readable"):
            list(data.train_batches(batch_size=4, steps=100, seed=0))
        assert len(searched(data)) == 3

    def test_lost_search_images_do_not_count_as_trained_ones(self, folder: Path) -> None:
        data = open_data(folder, search_images=3, **STREAM)
        shutil.rmtree(folder / "train")
        for batches in (data.search_batches(batch_size=4), data.train_batches(batch_size=4, steps=100, seed=0)):
            with pytest.raises(InputError, match="too few images are readable"):
                list(batches)

    @pytest.mark.parametrize("storage", [{}, STREAM], ids=["kept", "streamed"])
    def test_at_most_a_fifth_of_the_readable_images(self, folder: Path, storage: dict[str, Any]) -> None:
        assert open_data(folder, search_images=100, **storage).search_size == 3
        spoil(folder / "train" / "ant" / "3.png")
        assert open_data(folder, search_images=100, **storage).search_size == 2

    def test_classes_take_turns_as_the_seed_draws(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path, {"train": dict.fromkeys(CLASSES, 20), "validation": FULL["validation"]})
        data = open_data(root, search_images=6)
        images = searched(data)
        assert per_class(images) == {0: 2, 1: 2, 2: 2}
        assert sorted(red for red, _ in images[:3]) == [0, 1, 2]
        assert seen(data.search_batches(batch_size=3, limit=4)) == images[:4]
        assert searched(open_data(root, search_images=6)) == images
        assert searched(open_data(root, search_images=6, seed=1)) != images

    @pytest.mark.parametrize("storage", [{}, STREAM], ids=["kept", "streamed"])
    @pytest.mark.parametrize("unreadable", [None, 0, 1])
    def test_a_class_keeps_a_readable_image(
        self, tmp_path: Path, unreadable: int | None, storage: dict[str, Any]
    ) -> None:
        sizes = {"ant": 20, "bee": 1, "cat": 2}
        root = make_folder(tmp_path, {"train": sizes, "validation": FULL["validation"]})
        if unreadable is not None:
            spoil(root / "train" / "cat" / f"{unreadable}.png")
        data = open_data(root, search_images=100, **storage)
        assert per_class(searched(data)) == ({0: 3, 2: 1} if unreadable is None else {0: 4})
        assert {red for red, _ in seen(data.train_batches(batch_size=19, steps=1, seed=0))} == {0, 1, 2}

    def test_there_are_none_with_one_image_per_class(self, tmp_path: Path) -> None:
        data = open_data(
            make_folder(tmp_path, {"train": dict.fromkeys("abcdef", 1), "validation": {"a": 1}}), search_images=5
        )
        assert (data.search_size, data.training_size) == (0, 6)
        with pytest.raises(ValueError, match="there are no search images: ask `load_data` for search_images"):
            data.search_batches(batch_size=1)

    @STORAGE
    def test_the_next_of_its_class_replaces_an_unreadable_one(self, folder: Path, storage: dict[str, Any]) -> None:
        before = open_data(folder, search_images=2, **storage)
        classes, first = per_class(searched(before)), before.train.files[before.search.keys[0][0]]
        spoil(Path(first[0]))
        data = open_data(folder, search_images=2, **storage)
        images = searched(data)
        assert data.search_size == len(images) == 2
        assert per_class(images) == classes
        assert f"1 unreadable skipped: 'train/{CLASSES[first[1]]}/{Path(first[0]).name}'" in data.description

    def test_images_lost_after_loading_end_scoring(self, folder: Path) -> None:
        data = open_data(folder, **BOTH, **STREAM)
        shutil.rmtree(folder / "train")
        shutil.rmtree(folder / "validation")
        for batches in (data.search_batches, data.report_batches):
            with pytest.raises(InputError, match="too few images are readable; unreadable are"):
                list(batches(batch_size=4))


class TestReport:
    @pytest.mark.parametrize("name", ["test", "testing"])
    def test_a_test_folder_is_reported_on(self, folder: Path, name: str) -> None:
        before = validated(open_data(folder))
        data = open_data(add_test(folder, {"bee": 3, "cat": 1}, name), report_images=100)
        assert sorted(reported(data)) == [(1, 100), (1, 101), (1, 102), (2, 100)]
        assert [labels.tolist() for _, labels in data.report_batches(batch_size=4)] == [
            [red for red, _ in reported(data)]
        ]
        assert validated(data) == before
        assert (data.report_size, data.report_name) == (4, f"4 images of {name}")

    def test_fewer_images_are_balanced_and_drawn(self, folder: Path) -> None:
        add_test(folder, dict.fromkeys(CLASSES, 9))
        images = reported(open_data(folder, report_images=6))
        assert per_class(images) == {0: 2, 1: 2, 2: 2}
        assert images != reported(open_data(folder, report_images=6, seed=1))
        assert open_data(folder, report_images=1).report_name == "1 image of test"

    def test_the_named_test_split_comes_first(self, folder: Path) -> None:
        add_test(add_test(folder, {"bee": 3}), {"ant": 2}, "images/last")
        data = open_data(folder, report_images=100, layout=DataLayout(test_split="images/last"))
        assert sorted(reported(data)) == [(0, 100), (0, 101)]
        assert data.report_name == "2 images of images/last"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("last", r"must contain last/, but it contains 'test', 'train', 'validation'$"),
            ("train", "--test-split must name other images than those of training, but got 'train'"),
            ("test", "test' must contain images in class folders, but it contains none"),
        ],
    )
    def test_a_named_split_must_have_other_images(self, folder: Path, name: str, message: str) -> None:
        (folder / "test").mkdir()
        with pytest.raises(InputError, match=message):
            open_data(folder, report_images=4, layout=DataLayout(test_split=name))

    def test_test_classes_must_be_those_of_training(self, folder: Path) -> None:
        add_test(folder, {"bee": 3, "dog": 1})
        with pytest.raises(InputError, match="test classes must be among those of training, but 'dog' are not"):
            open_data(folder, report_images=4, layout=DataLayout(test_split="test"))
        assert open_data(folder, search_images=2).report_size == 0  # no test split is opened

    def test_an_unnamed_test_folder_of_other_classes_is_none(self, folder: Path) -> None:
        """Such as Kaggle's test/images, which has no labels."""
        add_test(folder, {"images": 3})
        assert open_data(folder, report_images=4).report_name.endswith("validation images set aside")

    def test_a_test_split_needs_a_readable_image(self, folder: Path) -> None:
        spoil(add_test(folder, {"bee": 1}) / "test" / "bee" / "0.png")
        with pytest.raises(InputError, match="test needs a readable image, but got only 'test/bee/0.png'"):
            open_data(folder, report_images=4)

    def test_unreadable_and_unused_test_files_are_noted(self, folder: Path) -> None:
        spoil(add_test(folder, {"bee": 3}) / "test" / "bee" / "1.png")
        (folder / "test" / "list.txt").touch()
        data = open_data(folder, report_images=3)
        assert sorted(reported(data)) == [(1, 100), (1, 102)]
        assert data.notes == ("1 file left out: 1 .txt", "1 unreadable skipped: 'test/bee/1.png'")

    @pytest.mark.parametrize("layout", [None, DataLayout(test_split="test")], ids=["found", "named"])
    def test_a_link_to_validation_is_no_test_split(self, folder: Path, layout: DataLayout | None) -> None:
        (folder / "test").symlink_to(folder / "validation")
        data = open_data(folder, report_images=100, layout=layout)
        assert not set(reported(data)) & set(validated(data))
        assert data.report_name == "3 validation images set aside"

    def test_a_folder_without_class_folders_is_no_test_split(self, folder: Path) -> None:
        (folder / "test" / "empty").mkdir(parents=True)
        noise(folder / "test" / "0.png", (40, 30))
        assert open_data(folder, report_images=100).report_name == "3 validation images set aside"


class TestHalves:
    @pytest.fixture
    def uneven(self, tmp_path: Path) -> Path:
        sizes = {"ant": 9, "bee": 1, "cat": 4, "dog": 2}
        return make_folder(tmp_path, {"train": dict.fromkeys(sizes, 2), "validation": sizes})

    def test_the_larger_half_of_each_class_stays(self, uneven: Path) -> None:
        data = open_data(uneven, report_images=100)
        left, right = validated(data), reported(data)
        assert per_class(left) == {0: 5, 1: 1, 2: 2, 10: 1}
        assert per_class(right) == {0: 4, 2: 2, 10: 1}
        assert sorted(left + right) == sorted(validated(open_data(uneven)))
        assert (data.validation_size, data.report_size) == (9, 7)

    def test_they_do_not_depend_on_numbers_but_on_the_seed(self, uneven: Path) -> None:
        whole = open_data(uneven, report_images=100)
        some = open_data(uneven, report_images=3, val_images=2)
        assert reported(some) == reported(whole)[:3]
        assert validated(some) == validated(whole)[:2]
        assert open_data(uneven, report_images=100, val_images=None).validation_size == 9
        assert set(reported(whole)) != set(reported(open_data(uneven, report_images=100, seed=1)))

    @pytest.mark.parametrize("storage", [{}, STREAM], ids=["kept", "streamed"])
    @pytest.mark.parametrize("unreadable", [0, 1])
    def test_validation_keeps_a_readable_image(self, uneven: Path, unreadable: int, storage: dict[str, Any]) -> None:
        spoil(uneven / "validation" / "dog" / f"{unreadable}.png")
        data = open_data(uneven, report_images=100, **storage)
        assert per_class(validated(data))[10] == 1
        assert per_class(reported(data)) == {0: 4, 2: 2}

    def test_single_images_all_stay(self, tmp_path: Path) -> None:
        data = open_data(
            make_folder(tmp_path, {"train": FULL["train"], "validation": dict.fromkeys(CLASSES, 1)}), report_images=9
        )
        assert (data.validation_size, data.report_size, data.report_name) == (3, 0, "no images")
        with pytest.raises(ValueError, match="there are no report images: ask `load_data` for report_images"):
            data.report_batches(batch_size=1)


class TestWhole:
    """All sets at once."""

    @STORAGE
    def test_no_two_sets_share_an_image(self, folder: Path, storage: dict[str, Any]) -> None:
        data = open_data(folder, calibration_images=100, **BOTH, **storage)
        files = data.train.files, data.validation.files
        trained = {files[0][index][0] for index in data.training_sample(100, seed=0)}
        assert trained == {files[0][index][0] for index, _ in data.calibration_keys}
        held_out = [data.search.keys, data.validation_keys, data.report.keys]
        sets = [trained, *({files[place > 0][index][0] for index, _ in keys} for place, keys in enumerate(held_out))]
        assert [len(each) for each in sets] == [12, 3, 5, 3]
        assert len(set.union(*sets)) == 23

    @STORAGE
    def test_storage_does_not_change_a_bit(self, photos: Path, storage: dict[str, Any]) -> None:
        noise(photos / "train" / "bee" / "cat.png", (31, 22), seed=9)
        kept = open_data(photos, crop_pct=0.8, search_images=1, report_images=9)
        other = open_data(photos, crop_pct=0.8, search_images=1, report_images=9, **storage)
        for name in ("search_batches", "report_batches", "validation_batches", "calibration_batches"):
            first = list(getattr(kept, name)(batch_size=2))
            assert same(first, getattr(other, name)(batch_size=2))
            assert same(first, getattr(kept, name)(batch_size=2))  # from the cache
        train = {"batch_size": 4, "steps": 5, "seed": 3}
        assert same(kept.train_batches(**train), other.train_batches(**train))

    @pytest.mark.parametrize("test", [False, True])
    def test_tensors_of_evaluation_are_cached(self, folder: Path, test: bool) -> None:
        if test:
            add_test(folder, {"ant": 3})
        data = open_data(folder, **BOTH)
        list(data.calibration_batches(batch_size=2))
        list(data.ordered_batches(data.training_sample(100, seed=0), batch_size=2))
        first = [list(batches(batch_size=2)) for batches in (data.search_batches, data.report_batches)]
        assert set(data.train.tensor_cache) == {index for index, _ in data.calibration_keys} | data.set_aside
        data.transforms.evaluation.transforms = None  # whoever called it now would fail
        assert same(first[0], data.search_batches(batch_size=2))
        assert same(first[1], data.report_batches(batch_size=2))

    def test_the_memory_limit_counts_them(self, folder: Path) -> None:
        # 40 × 30 pixels shrink to 26 × 20 (see `TestStorage`): 15 for training, 2 of validation, 2 of test.
        add_test(folder, {"ant": 5})
        needed = (15 + 2 + 2) * 20 * 26 * 3
        with_tensors = needed + (3 + 2 + 2 + 4) * 16 * 16 * 3
        streamed, kept, less, enough = (
            open_data(folder, crop_pct=0.8, val_images=2, search_images=3, report_images=2, memory_limit_bytes=limit)
            for limit in (needed - 1, needed, with_tensors - 1, with_tensors)
        )
        assert [data.report.images.pixel_cache is None for data in (streamed, kept)] == [True, False]
        assert [data.report.images.tensor_cache is None for data in (less, enough)] == [True, False]

    @pytest.mark.parametrize("channels", [1, 4])
    def test_they_have_the_channels_of_the_network(self, folder: Path, channels: int) -> None:
        add_test(folder, {"ant": 3})
        data = open_data(folder, **BOTH, mean=(0.0,) * channels, std=(1.0,) * channels)
        for batches in (data.search_batches, data.report_batches):
            assert [images.shape for images, _ in batches(batch_size=3)] == [(3, channels, 16, 16)]

    def test_the_description_counts_them(self, folder: Path) -> None:
        def sizes(**changes: Any) -> str:
            return open_data(folder, **changes).description.partition(": ")[2]

        rest = " images in 3 classes, kept in memory"
        assert sizes() == f"15 training and 8 validation{rest}"
        assert sizes(search_images=3) == f"12 training, 3 search and 8 validation{rest}"
        assert sizes(report_images=9) == f"15 training, 5 validation and 3 report{rest}"
        assert sizes(**BOTH) == f"12 training, 3 search, 5 validation and 3 report{rest}"

    def test_images_of_a_folder_are_their_own_groups(self, folder: Path) -> None:
        data = open_data(folder, **BOTH)
        for groups, size in (
            (data.search_groups(), 3),
            (data.report_groups(), 3),
            (open_data(folder).search_groups(), 0),
        ):
            assert groups.dtype == np.int64
            assert groups.tolist() == list(range(size))

    @pytest.mark.parametrize("name", ["search_images", "report_images"])
    def test_negative_numbers_are_refused(self, folder: Path, name: str) -> None:
        with pytest.raises(InputError, match=f"must be 0 or more, but got .*{name}=-1"):
            open_data(folder, **{name: -1})

    def test_a_trained_network_has_no_such_images(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="a trained network is scored on held-out images"):
            open_data(folder, scoring=Scoring(split=None, class_names=None), search_images=3)


def test_by_default_nothing_is_set_aside(folder: Path) -> None:
    """Orders and choices by their definition, as they were before there was anything to set aside."""
    add_test(folder, {"dog": 3})  # would be refused
    data = open_data(folder)
    colours = [(label, int(Path(path).stem)) for path, label in data.train.files]
    orders = [np.random.default_rng((7, epoch)).permutation(15) for epoch in range(3)]
    wanted = [colours[index] for order in orders for index in order]
    assert seen(data.train_batches(batch_size=9, steps=5, seed=7)) == wanted
    assert [index for index, _ in data.calibration_keys] == balanced(data.train.labels, 4, seed=0, without=())
    assert [index for index, _ in data.validation_keys] == balanced(data.validation.labels, 8, seed=0, without=())
    assert (data.search_size, data.report_size, data.training_size) == (0, 0, 15)
    assert data.training_sample(100, seed=0) == list(range(15))
