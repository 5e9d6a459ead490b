"""Export in int8: the answers of both ONNX files are compared on labelled images."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support.command_line import Ltmsearch
from support.nets import randomise

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.errors import ExportError
from ltmsearch.export.int8 import compared
from ltmsearch.programs import open_onnx
from ltmsearch.programs.verify import Program

NAMES = ("dog", "cat", "bird")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def small_training(folder: Path) -> Path:
    """The folder of a training of a ViT of two blocks."""
    folder.mkdir()
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    recipe = Recipe(
        model="ltm_vit_tiny_patch16_224", operator="ltm", schedule={"blocks.0": 0.6}, forms={"blocks.0": "matched"},
        num_classes=3, img_size=64, model_kwargs=small,
    )  # fmt: skip
    recipe.save(folder / "recipe.yaml")
    net = randomise(timm.create_model(recipe.model, **recipe.model_kwargs()), 1)
    save_file(net.state_dict(), folder / "best.safetensors", {"ltmsearch": json.dumps({"class_names": NAMES})})
    return folder


def image_folder(root: Path, names: Sequence[str]) -> Path:
    rng = np.random.default_rng(0)
    for split, number in (("train", 1), ("validation", 7)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.long
def test_int8_is_compared_on_labelled_images(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    training, photos = small_training(tmp_path / "training"), image_folder(tmp_path / "photos", sorted(NAMES))
    shutil.rmtree(photos / "train")
    recipe = load_recipe(training / "recipe.yaml")
    code, out, err = ltmsearch("export", str(training), "--onnx", "--int8", "--data-dir", str(photos), "--json")
    assert code == 0, err
    *_, onnx, int8 = json.loads(out)
    assert int8["file"] == str(training / "export/model.int8.onnx")
    assert int8["bytes"] == Path(int8["file"]).stat().st_size < 0.8 * onnx["bytes"]
    assert files_in(training / "export") == ["model.int8.onnx", "model.onnx", "recipe.yaml"]
    config = timm.data.resolve_data_config({}, model=timm.create_model(recipe.model, **recipe.model_kwargs()))
    transform: Any = timm.data.create_transform(
        64, mean=config["mean"], std=config["std"], interpolation=config["interpolation"], crop_pct=config["crop_pct"]
    )
    files = sorted((photos / "validation").rglob("*.png"))
    images = torch.stack([transform(Image.open(file)) for file in files])
    truth = np.array([NAMES.index(file.parent.name) for file in files])
    wanted, got = (
        np.concatenate([open_onnx(Path(file), threads=1)(each).argmax(1).numpy() for each in images.split(1)])
        for file in (onnx["file"], int8["file"])
    )
    assert int8["agreement"] == pytest.approx(100 * (wanted == got).mean())
    difference = 100 * ((got == truth).mean() - (wanted == truth).mean())
    assert int8["top1_difference"] == pytest.approx(difference)
    assert "9 products in int8, the same class as in float32 for" in int8["check"]
    assert "% of 21 images one by one" in int8["check"]


def test_answers_are_counted_pair_by_pair() -> None:
    """Ten images of classes 0 to 2: one program is always right, the other is so for the first six."""
    truth = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    logits = torch.nn.functional.one_hot(truth, 3).float()
    other = torch.nn.functional.one_hot(torch.where(torch.arange(10) < 6, truth, (truth + 1) % 3), 3).float()
    batches = [(torch.full((1, 1), float(n)), truth[n : n + 1]) for n in range(10)]
    done: list[int] = []

    def program(of: torch.Tensor) -> Program:
        return lambda images: of[images[:, 0].long()]

    found = compared(program(logits), program(other), batches, done.append)
    assert (found.images, found.agreement, found.top1_difference) == (10, 60.0, pytest.approx(-40.0))
    assert found.agreement_se == pytest.approx(100 * (0.6 * 0.4 / 10) ** 0.5)
    assert done == list(range(1, 11))
    with pytest.raises(ExportError, match="not finite in int8"):
        compared(program(logits), program(other * float("nan")), batches, done.append)
    alone = compared(program(logits), program(other), batches[:1], done.append)
    assert alone.top1_difference_se is None, "unknown from one image"


def test_int8_needs_onnx_and_the_images_of_the_network(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    training = small_training(tmp_path / "training")
    folder = str(training)
    for arguments, rule in (
        (("--int8", "--dataset", "digits"), "--int8 quantises the ONNX file, so it needs --onnx"),
        (("--onnx", "--int8"), "labelled images, which the folder of a training does not name: use --data-dir DIR"),
        (("--onnx", "--data-dir", "photos"), "options of images need --int8"),
        (("--onnx", "--val-split", "v"), "options of images need --int8"),
        (("--onnx", "--int8", "--dataset", "digits"), "must have the 3 classes of .*, but have 10"),
        (("--onnx", "--int8", "--data-dir", "nowhere"), "must be an existing image folder, but got 'nowhere'"),
    ):
        code, out, err = ltmsearch("export", folder, *arguments)
        assert (code, out) == (2, "")
        assert re.search(rule, err)
        assert err.count("\n") == 1
    assert files_in(training) == ["best.safetensors", "recipe.yaml"], "nothing is written"
