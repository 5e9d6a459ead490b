"""Image folders for the tests of data."""

import pytest
from PIL import Image
from support.images import CLASSES, make_folder, noise


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """Images longer and shorter than what they are shrunk to, upright and lying, grey and with a palette."""
    for split in ("train", "validation"):
        for index, size in enumerate([(60, 40), (40, 60), (12, 15), (23, 20), (300, 21)]):
            (tmp_path / split / CLASSES[index % 2]).mkdir(parents=True, exist_ok=True)
            noise(tmp_path / split / CLASSES[index % 2] / f"{index}.png", size, seed=index)
    image = Image.open(tmp_path / "validation" / "ant" / "0.png")
    image.convert("L").save(tmp_path / "validation" / "ant" / "grey.png")
    image.convert("P").save(tmp_path / "validation" / "ant" / "palette.png")
    image.close()
    return tmp_path


@pytest.fixture
def spoilt(folder):
    """Text in place of an image in both splits, and a truncated JPEG."""
    (folder / "train" / "bee" / "0.png").write_text("not an image")
    (folder / "validation" / "cat" / "1.png").write_text("not an image")
    cut = folder / "train" / "cat" / "cut.jpg"
    noise(cut, (40, 30))
    cut.write_bytes(cut.read_bytes()[:-100])
    (folder / "train" / "cat" / "notes.txt").write_text("no image at all: not even looked at")
    return folder
