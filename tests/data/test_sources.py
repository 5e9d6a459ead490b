"""Folders and named data sets that are refused, or read with notes."""

import importlib.machinery
import io
import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.images import make_folder, open_data, seen

from ltmsearch.data.layout import DataLayout
from ltmsearch.data.sources import Scoring
from ltmsearch.data.transforms import make_transforms
from ltmsearch.errors import InputError

pytestmark = [  # of tests with two workers: later Pythons on forking beside threads, torch on a machine with one CPU
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def without(part):
    return lambda root: shutil.rmtree(root / part)


def emptied(part):
    return lambda root: [path.unlink() for path in (root / part).rglob("*.png")]


def images(root):
    return list((root / "train").rglob("*.png"))


def renamed(suffix):
    return lambda root: [path.rename(path.with_suffix(suffix)) for path in images(root)]


def into_one(root):
    return lambda name: shutil.move(root / "train" / name, root / "train" / "images" / name)


def moved(source, target):
    return lambda root: shutil.move(root / source, root / target)


class TestErrors:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (without("."), "`data_dir` must be an existing image folder, but got '.*data'"),
            (without("train"), "'.*data' must contain train/ or training/, but it contains 'validation'"),
            (without("validation"), "must contain validation/ or val/ or valid/, but it contains 'train'"),
            (lambda root: [without("train")(root), without("validation")(root)], "but it contains nothing"),
            (emptied("train"), "train' must contain images in class folders, but it contains none$"),
            (emptied("validation"), "validation' must contain images in class folders, but it contains none$"),
            (emptied("train/bee"), "class folders must contain images, but '.*train' has none in 'bee'"),
            (
                lambda root: [without(f"train/{name}")(root) for name in ("bee", "cat")],
                "two classes.*only 'ant'",
            ),
            (without("train/bee"), "validation classes must be among those of training, but 'bee' are not"),
            (moved("train/bee/", "train/.bee"), "validation classes must be among those of training, but 'bee' are"),
            (
                lambda root: [path.rename(root / "train" / f"{path.parent.name}{path.name}") for path in images(root)],
                r"images in class folders, but it contains none; 15 files left out: "
                r"15 outside of class folders, such as 'train/ant0.png'",
            ),
            (renamed(".txt"), "train' must contain images.*but it contains none; 15 files left out: 15 .txt"),
            (
                lambda root: [(root / "train" / "images").mkdir(), *map(into_one(root), ("ant", "bee", "cat"))],
                "two classes, but got only 'images'; a class is a folder directly in train/",
            ),
        ],
    )
    def test_an_image_folder_that_breaks_a_rule(self, tmp_path, spoil, message):
        root = make_folder(tmp_path / "data")
        spoil(root)
        with pytest.raises(InputError, match=message) as raised:
            open_data(root)
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dataset": "folder", "data_dir": None}, "`data_dir` must be an existing image folder, but got 'None'"),
            ({"data_dir": Path("x" * 300)}, "`data_dir` must be an existing image folder, but got 'xxx"),
            ({"dataset": "digits"}, "'digits' are built in, but got data_dir='.*': use dataset='folder'"),
            ({"dataset": "cifar10"}, "unknown dataset 'cifar10': did you mean torch/cifar10.*known are digits, folder"),
            ({"dataset": "torch/cifar11"}, "unknown dataset 'torch/cifar11': did you mean torch/cifar1"),
            (
                {"dataset": "torch/cifar10"},
                "must be in '.*' as torchvision downloads it, but: Dataset not found or corrupted$",
            ),
            ({"dataset": "torch/cifar10", "data_dir": None}, "'torch/cifar10' needs `data_dir`"),
            ({"dataset": "torch/imagenet"}, "'torch/imagenet' must be in.*devkit"),
            ({"dataset": "tfds/mnist"}, "readable by image number, but 'tfds/mnist' is a stream"),
            ({"dataset": "wds/shards"}, "is a stream"),
            ({"dataset": "hfids/owner/name"}, "is a stream"),
            ({"img_size": 0}, "img_size=0"),
            ({"val_images": 0}, "val_images=0"),
            ({"calibration_images": 0}, "calibration_images=0"),
            ({"seed": -1}, "seed=-1"),
            ({"crop_pct": 1.2}, "crop_pct=1.2"),
            ({"crop_pct": 0.0}, "crop_pct=0.0"),
            (
                {"crop_mode": "centre"},
                "`crop_mode` must be center, squash, border, but got 'centre': did you mean center",
            ),
        ],
    )
    def test_a_choice_that_cannot_be(self, folder, changes, message):
        with pytest.raises(InputError, match=message) as raised:
            open_data(**({"data_dir": folder} | changes))
        assert str(raised.value).isprintable()

    def test_a_missing_library_is_named(self, monkeypatch):
        monkeypatch.setattr("ltmsearch.data.sources.find_spec", lambda name: None)
        with pytest.raises(InputError, match="pip install datasets"):
            open_data(None, dataset="hfds/owner/name")


class TestNamed:
    @pytest.fixture
    def cifar(self, tmp_path, monkeypatch):
        """CIFAR-10 as torchvision finds it on disk, but with 30 and 10 images; checksums are taken as read."""
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        names = [f"data_batch_{number}" for number in range(1, 6)]
        for number, name in enumerate([*names, "test_batch"]):
            size = 10 if name == "test_batch" else 6
            data = np.random.default_rng(number).integers(0, 256, (size, 3072), dtype=np.uint8)
            (folder / name).write_bytes(
                pickle.dumps({"data": data, "labels": [(i + number) % 10 for i in range(size)]})
            )
        meta = {"label_names": [f"class {label}" for label in range(10)]}
        (folder / "batches.meta").write_bytes(pickle.dumps(meta))
        monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
        return tmp_path

    def test_cifar10_through_timm(self, cifar):
        data = open_data(cifar, dataset="torch/cifar10", img_size=32)
        assert data.class_names[3] == "class 3"
        assert "30 training and 10 validation images" in data.description
        original = torchvision.datasets.CIFAR10(cifar, train=False)
        ((images, labels),) = data.validation_batches(batch_size=10)
        assert sorted(labels.tolist()) == sorted(original.targets)
        for image, label in original:
            wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
            assert torch.equal(images[labels == label][0], wanted)

    def test_characters_are_not_mirrored(self):
        for name, mirrored in (("torch/MNIST", False), ("torch/cifar10", True)):
            made = make_transforms(name, 28, (0.0,) * 3, (1.0,) * 3, "bicubic", 1.0, "center", None)
            assert ("Flip" in repr(made.train)) is mirrored

    @pytest.fixture
    def hub(self, monkeypatch):
        """A stand-in for the Hugging Face library, which is not installed with the package: what timm calls of it."""

        sizes = {"train": 8, "test": 4}

        class Rows(list):
            def __init__(self, split, rows):
                super().__init__(rows)
                label = types.SimpleNamespace(names=["cat", "dog"])
                self.info = types.SimpleNamespace(features={"label": label}, splits=dict.fromkeys(sizes))

            def cast_column(self, name, kind):
                return self

            def remove_columns(self, name):
                return [{key: value for key, value in row.items() if key != name} for row in self]

        def load_dataset(name, split, cache_dir):
            if name != "owner/pets":
                raise FileNotFoundError(f"Couldn't reach {name}\nand a traceback")
            if split not in sizes:
                raise ValueError(f'Unknown split "{split}".')
            rows = []
            for index in range(sizes[split]):
                file = io.BytesIO()
                Image.new("RGB", (20, 20), (20 * (index % 2), index, 0)).save(file, "png")
                content = b"text" if (split, index) == ("train", 3) else file.getvalue()
                rows.append({"image": {"bytes": content, "path": None}, "label": index % 2})
            if split == "test":
                rows[1].update(spoilt_test_row)
            return Rows(split, rows)

        spoilt_test_row = {}
        module = types.ModuleType("datasets")
        module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
        module.load_dataset, module.Image, module.sizes = load_dataset, lambda decode: None, sizes
        monkeypatch.setitem(sys.modules, "datasets", module)
        yield spoilt_test_row
        sys.modules.pop("timm.data.readers.reader_hfds", None)  # it holds on to the stand-in

    def test_hugging_face_sets_are_read_by_row(self, hub):
        data = open_data(None, dataset="hfds/owner/pets")
        assert data.class_names == ("cat", "dog")
        assert data.skipped == ("train[3]",)
        trained = seen(data.train_batches(batch_size=7, steps=1, seed=0))
        assert sorted(trained) == [(index % 2, index) for index in (0, 2, 4, 6, 1, 5, 7)]
        assert sorted(seen(data.validation_batches(batch_size=4))) == [(0, 0), (0, 2), (1, 1), (1, 3)]
        with pytest.raises(InputError, match=r"'hfds/owner/none' must be readable, but: Couldn't reach owner/none$"):
            open_data(None, dataset="hfds/owner/none")

    @pytest.mark.parametrize("label", [-1, None, 2])
    def test_images_without_labels_are_refused(self, hub, label):
        hub["label"] = label
        with pytest.raises(InputError, match="'hfds/owner/pets' must have a label for every image, but 'test' has"):
            open_data(None, dataset="hfds/owner/pets")

    def test_rows_without_an_image_are_skipped(self, hub):
        hub["image"] = {"bytes": None, "path": None}
        data = open_data(None, dataset="hfds/owner/pets")
        assert sorted(seen(data.validation_batches(batch_size=4))) == [(0, 0), (0, 2), (1, 3)]
        assert data.skipped == ("train[3]", "test[1]")

    def test_deep_grey_of_the_hub_is_scaled(self, hub):
        file = io.BytesIO()
        Image.new("I;16", (20, 20), 257 * 40).save(file, "png")
        hub["image"] = {"bytes": file.getvalue(), "path": None}
        data = open_data(None, dataset="hfds/owner/pets")
        assert (2, 40) in seen(data.validation_batches(batch_size=4))
        assert "grey of 16 or 32 bits scaled to 8" in data.notes

    def test_the_split_to_score_can_be_chosen(self, hub):
        scoring = Scoring(split="test", class_names=None)
        assert open_data(None, dataset="hfds/owner/pets", scoring=scoring).title == "hfds/owner/pets, test"
        with pytest.raises(InputError, match='must be readable, but: Unknown split "validation"'):
            open_data(None, dataset="hfds/owner/pets", scoring=Scoring(split="validation", class_names=None))

    def test_images_of_the_hubs_test_split_are_reported(self, hub):
        sys.modules["datasets"].sizes["validation"] = 6
        data = open_data(None, dataset="hfds/owner/pets", report_images=100)
        assert sorted(seen(data.report_batches(batch_size=4))) == [(0, 0), (0, 2), (1, 1), (1, 3)]
        assert (data.validation_size, data.report_name) == (6, "4 images of test")

    @pytest.mark.parametrize("label", [-1, None, 2])
    def test_an_unlabelled_test_split_is_not_reported_on(self, hub, label):
        sys.modules["datasets"].sizes["validation"] = 8
        hub["label"] = label
        data = open_data(None, dataset="hfds/owner/pets", report_images=100)
        assert (data.validation_size, data.report_name) == (4, "4 validation images set aside")
        with pytest.raises(InputError, match="must have a label for every image, but 'test' has images without"):
            open_data(None, dataset="hfds/owner/pets", report_images=9, layout=DataLayout(test_split="test"))

    @pytest.mark.parametrize(
        "layout",
        [None, DataLayout(test_split="test"), DataLayout(val_split="test")],
        ids=["found", "named", "as validation"],
    )
    def test_what_is_validated_is_not_reported(self, hub, layout):
        data = open_data(None, dataset="hfds/owner/pets", report_images=100, layout=layout)
        validated, reported = seen(data.validation_batches(batch_size=4)), seen(data.report_batches(batch_size=4))
        assert sorted(validated + reported) == [(0, 0), (0, 2), (1, 1), (1, 3)]
        assert data.report_name == "2 validation images set aside"

    def test_the_hubs_splits_can_be_named(self, hub):
        sys.modules["datasets"].sizes.update({"validation": 6, "last": 5})
        data = open_data(None, dataset="hfds/owner/pets", report_images=9, layout=DataLayout(test_split="last"))
        assert (data.validation_size, data.report_name) == (6, "5 images of last")
        with pytest.raises(InputError, match='must be readable, but: Unknown split "tset"'):
            open_data(None, dataset="hfds/owner/pets", report_images=9, layout=DataLayout(test_split="tset"))
        with pytest.raises(InputError, match="--test-split must name other images than those of training, but got"):
            open_data(None, dataset="hfds/owner/pets", report_images=9, layout=DataLayout(test_split="train"))

    @pytest.mark.parametrize("split", ["test[:2]", "validation+test"])
    def test_parts_of_the_test_split_count_as_it(self, hub, split):
        sys.modules["datasets"].sizes.update({"validation": 6, split: 4})
        data = open_data(None, dataset="hfds/owner/pets", report_images=9, layout=DataLayout(val_split=split))
        assert data.report_name == "2 validation images set aside"

    @pytest.mark.parametrize("layout", [None, DataLayout(test_split="test")], ids=["usual", "named"])
    def test_half_of_torchvisions_test_images_is_set_aside(self, cifar, layout):
        pixels = np.random.default_rng(9).integers(0, 256, (30, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [index % 10 for index in range(30)]}
        (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
        data = open_data(
            cifar, dataset="torch/cifar10", img_size=32, search_images=100, report_images=100, layout=layout
        )
        assert (data.training_size, data.search_size, data.validation_size, data.report_size) == (24, 6, 20, 10)
        shown = {
            row.numpy().tobytes()
            for batches in (data.validation_batches, data.report_batches)
            for images, _ in batches(batch_size=8)
            for row in images
        }
        assert len(shown) == 30
