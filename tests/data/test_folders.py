"""Image folders as people have them: which images are found, of which class, and what is said of the others."""

import os
import sys

import pytest
import torchvision
from PIL import Image
from support.images import CLASSES, FULL, STREAM, make_folder, open_data, seen
from timm.data import create_dataset

from ltmsearch.data.folders import scan
from ltmsearch.errors import InputError

FORMATS = ("png", "webp", "tif", "TIFF", "bmp", "gif", "JPEG", "jp2")


def draw(path, colour=(0, 0, 255), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path, **options)


def found(root):
    """(class, path below the split) of each image."""
    scanned = scan(root)
    return sorted((scanned.class_names[label], os.path.relpath(path, root)) for path, label in scanned.files)


class TestLabels:
    @pytest.mark.parametrize("inner", ["{name}/2023/a.png", "{name}/images/a.png", "{name}/a/b/c/a.png"])
    def test_the_class_is_the_first_folder_below_the_split(self, tmp_path, inner):
        for split in ("train", "validation"):
            for label, name in enumerate(CLASSES):
                for other in ("2023/", "2024/", "images/", "sub/"):
                    file = inner.format(name=name).replace("2023/", other)
                    draw(tmp_path / split / file, (20 * label, 0, 0), **({"format": "png"}))
                draw(tmp_path / split / name / "flat.png", (20 * label, 1, 0))
        data = open_data(tmp_path)
        assert data.class_names == CLASSES
        assert {red for red, _ in seen(data.validation_batches(batch_size=4))} == {0, 1, 2}
        for images, labels in data.validation_batches(batch_size=4):
            assert (images[:, 0, 8, 8] * 255 / 20).round().int().tolist() == labels.tolist()
        ours = torchvision.datasets.ImageFolder(tmp_path / "train")
        assert [(ours.classes[label], os.path.relpath(path, ours.root)) for path, label in sorted(ours.imgs)] == found(
            tmp_path / "train"
        )

    def test_a_single_deeper_image_makes_no_class(self, tmp_path):
        root = make_folder(tmp_path)
        draw(root / "train" / "ant" / "sub" / "x.png", (0, 9, 255))
        data = open_data(root)
        assert data.class_names == CLASSES
        assert (0, 9) in seen(data.train_batches(batch_size=16, steps=1, seed=0))

    def test_flat_folders_are_numbered_as_by_timm(self, tmp_path):
        """So that a study or a checkpoint of before means the same classes, and a seed the same images."""
        for name in ("class10", "class9", "Class1", "b", "A"):
            for number in (10, 9, 1):
                draw(tmp_path / name / f"{number}.png")
        reader, ours = create_dataset("", root=str(tmp_path)).reader, scan(tmp_path)
        assert ours.class_names == tuple(reader.class_to_idx) == ("A", "b", "Class1", "class9", "class10")
        assert ours.files == reader.samples

    def test_names_that_differ_in_case_alone_keep_one_order(self, tmp_path):
        for name in ("a", "A"):
            draw(tmp_path / name / "0.png")
        assert scan(tmp_path).class_names == ("A", "a")

    def test_hidden_folders_and_files_are_ignored(self, tmp_path):
        root = make_folder(tmp_path)
        for hidden in (".cache/a.png", "ant/.ipynb_checkpoints/a.png", "ant/._0.png", ".DS_Store.png"):
            draw(root / "train" / hidden)
        data = open_data(root)
        assert data.training_size == 15
        assert data.notes == ()

    @pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        draw(tmp_path / "elsewhere" / "0.png")
        root = tmp_path / "train"
        draw(root / "ant" / "0.png")
        (root / "bee").symlink_to(tmp_path / "elsewhere")
        (root / "ant" / "again").symlink_to(root / "ant")
        (root / "ant" / "all").symlink_to(tmp_path)  # or the bees would be ants too
        (root / "ant" / "self").symlink_to(root / "ant" / "self")
        (root / "ant" / "gone.png").symlink_to(tmp_path / "gone.png")
        os.mkfifo(root / "ant" / "pipe.png")
        (root / "ant" / "piped.png").symlink_to(root / "ant" / "pipe.png")
        assert found(root) == [("ant", "ant/0.png"), ("ant", "ant/gone.png"), ("bee", "bee/0.png")]
        assert scan(root).left_out == {"linked in a circle": 2, "not regular": 2, "without an ending": 1}

    def test_a_folder_that_may_not_be_read_is_refused(self, tmp_path, monkeypatch):
        root = make_folder(tmp_path)
        listed = os.scandir

        def scandir(path):
            if os.fspath(path).endswith("bee"):
                raise PermissionError(13, "Permission denied")
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(InputError, match="the image folder '.*bee' cannot be read: Permission denied"):
            open_data(root)


class TestFormats:
    @pytest.mark.parametrize("changes", [{}, STREAM], ids=["kept", "streamed"])
    def test_every_format_is_read(self, tmp_path, changes):
        for split in ("train", "validation"):
            for label, name in enumerate(CLASSES):
                for number, suffix in enumerate(FORMATS):
                    options = {"webp": {"lossless": True}, "JPEG": {"quality": 100}}.get(suffix, {})
                    draw(tmp_path / split / name / f"{number}.{suffix}", (20 * label, number, 0), **options)
        data = open_data(tmp_path, **changes)
        assert "24 training and 24 validation images in 3 classes" in data.description
        assert data.notes == ()
        got = {(red, green) for red, green in seen(data.validation_batches(batch_size=8))}
        assert got >= {(label, number) for label in range(3) for number in range(6)}  # without the lossy two

    def test_what_is_left_out_is_counted_by_reason(self, tmp_path):
        root = make_folder(tmp_path)
        for name in ("a.txt", "b.TXT", "c.mp4", "README", "d.x y"):
            (root / "train" / "ant" / name).write_text("")
        (root / "train" / "list.txt").write_text("")
        draw(root / "validation" / "stray.png")
        data = open_data(root)
        assert data.training_size == 15
        wanted = (
            "7 files left out: 3 .txt, 1 .mp4, 1 without an ending, 1 with an odd ending, "
            "1 outside of class folders, such as 'validation/stray.png'"
        )
        assert sorted(data.notes[0].partition(": ")[2].split(", ")) == sorted(wanted.partition(": ")[2].split(", "))
        assert data.notes[0].startswith("7 files left out: 3 .txt, ")
        assert data.notes[0] in data.description

    def test_empty_files_are_listed_as_unreadable(self, tmp_path):
        root = make_folder(tmp_path)
        (root / "train" / "ant" / "zero.webp").touch()
        assert open_data(root).notes == ("1 unreadable skipped: 'train/ant/zero.webp'",)

    def test_nested_folders_without_images_do_not_matter_except_for_a_whole_class(self, tmp_path):
        root = make_folder(tmp_path, {**FULL, "train": FULL["train"] | {"ant/empty": 0, "bee/x/y": 0}})
        assert open_data(root).class_names == CLASSES
        (root / "train" / "dog" / "none").mkdir(parents=True)
        (root / "train" / "dog" / "a.mp4").touch()
        with pytest.raises(InputError, match=r"has none in 'dog'; 1 file left out: 1 .mp4$"):
            open_data(root)

    @pytest.mark.parametrize("changes", [{}, STREAM], ids=["kept", "streamed"])
    def test_deep_grey_is_scaled_and_noted(self, tmp_path, changes):
        root = make_folder(tmp_path)
        Image.new("I;16", (20, 20), 257 * 40).save(root / "train" / "cat" / "deep.png")
        data = open_data(root, **changes, calibration_images=16)
        assert data.notes == ("grey of 16 or 32 bits scaled to 8",)
        values = [image[:, 8, 8] for images, _ in data.calibration_batches(batch_size=16) for image in images]
        assert [40, 40, 40] in [(value * 255).round().int().tolist() for value in values]

    @pytest.mark.parametrize("changes", [{}, STREAM], ids=["kept", "streamed"])
    def test_pillow_warns_of_no_image(self, tmp_path, changes):
        """Warnings are errors here."""
        root = make_folder(tmp_path)
        for split in ("train", "validation"):
            palette = Image.new("RGBA", (20, 20), (0, 7, 0, 100)).quantize(4)
            palette.save(root / split / "ant" / "palette.png", transparency=b"\x00\x80")
            exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x20"
            Image.new("RGB", (20, 20)).save(root / split / "ant" / "exif.jpg", exif=exif)
        data = open_data(root, **changes)
        assert (0, 7) in seen(data.validation_batches(batch_size=10))
        assert len(list(data.train_batches(batch_size=6, steps=5, seed=0))) == 5
        assert data.notes == ()

    def test_single_pixels_and_lines(self, tmp_path):
        for split in ("train", "validation"):
            for label, name in enumerate(CLASSES):
                for number, size in enumerate([(1, 1), (1, 5000), (5000, 1)]):
                    (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", size, (20 * label, number, 0)).save(tmp_path / split / name / f"{number}.png")
        data = open_data(tmp_path)
        every = [(label, number) for label in range(3) for number in range(3)]
        assert sorted(seen(data.validation_batches(batch_size=9))) == every
        assert sorted(seen(data.train_batches(batch_size=9, steps=1, seed=0))) == every
