"""`ltmsearch visualize`: which network looks at which pixels, what is written, and input that does not go together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support.command_line import call, image_folder
from support.nets import randomise
from torch import nn

from ltmsearch.config.recipe import Recipe
from ltmsearch.data.loading import load_data
from ltmsearch.errors import InputError
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.models.supernet import Supernet
from ltmsearch.reporting.merges import visualize
from ltmsearch.reporting.merges.visualize import visualize_recipe

BACKBONE, LAYER = "mobilevit_xxs", "stages.2.1.transformer.1"


def recipe(**changes: Any) -> Recipe:
    layers = get_adapter(BACKBONE).layers(timm.create_model(BACKBONE))
    values: dict[str, Any] = {
        "model": f"ltm_{BACKBONE}", "operator": "ltm", "num_classes": 4, "img_size": 64,
        "schedule": dict.fromkeys(layers, 1.0) | {LAYER: 0.5}, "forms": {LAYER: "hard"},
        "provenance": {"dataset": "digits"},
    }  # fmt: skip
    return Recipe(**(values | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return recipe().save(tmp_path / "8.yaml")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def weights(path: Path, seed: int = 1, **changes: Any) -> Path:
    net = recipe(**changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(randomise(timm.create_model(net.model, **net.model_kwargs()), seed).state_dict(), path)
    return path


def first_sum(model: nn.Module) -> float:
    """Tells weights apart."""
    return float(next(model.parameters()).detach().sum())


def test_a_picture_and_a_page_for_each_image(
    saved: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved.parent / "other"
    other.mkdir()
    grey = other / "Photo.png"
    Image.open(photo).convert("LA").save(grey)
    trained = str(weights(saved.parent / "w.safetensors"))
    arguments = ("visualize", str(saved), "--checkpoint", trained, "--image", str(photo), str(grey))
    code, out, _ = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    folder = saved.parent / "8-merges"
    names = ["photo.png", "photo.html", "Photo-2.png", "Photo-2.html"]
    assert out.splitlines() == [f"weights: {saved.parent.name}/w.safetensors", *(str(folder / name) for name in names)]
    assert {path.name for path in folder.iterdir()} == set(names)
    with Image.open(folder / "photo.png") as sheet:
        sheet.verify()
    page = (folder / "photo.html").read_text(encoding="utf-8")
    assert "<h1>photo.jpg</h1>" in page
    assert f'"name":"{LAYER}","words":"16 to 9 tokens, ltm hard"' in page
    code, out, _ = call(*arguments, "--json", monkeypatch=monkeypatch, capsys=capsys)
    files = [str(folder / name) for name in names]
    assert json.loads(out) == {"weights": f"{saved.parent.name}/w.safetensors", "notes": [], "files": files}
    code, out, _ = call(*arguments, "--quiet", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (0, "")


def test_an_image_is_seen_as_in_validation(tmp_path: Path) -> None:
    """Bit for bit, also one of another shape, in grey, or larger than the crop."""
    data_dir = image_folder(tmp_path / "data")
    files = sorted((data_dir / "validation").glob("*/*.jpg"))[:3]
    with Image.open(files[1]) as image:
        image.convert("L").resize((300, 160)).save(files[1])
    config = input_config(BACKBONE)
    data = load_data(
        dataset="folder", data_dir=data_dir, img_size=64, **config, val_images=None, calibration_images=1, seed=0
    )
    read, notes = visualize._read(recipe(), files, 64)
    assert notes == ()
    for file, (_, pixels) in zip(files, read.values(), strict=True):
        number = next(i for i, sample in enumerate(data.validation.files) if Path(sample[0]) == file)
        seen = data.validation.pixels(number)
        assert seen is not None
        wanted = data.transforms.evaluation(Image.fromarray(seen).convert("RGB"))
        assert np.array_equal(pixels, wanted.permute(1, 2, 0).numpy())


def test_a_net_that_sees_distorted_images_is_shown_them(tmp_path: Path) -> None:
    """`squash` of timm: the whole image, both sides resized."""
    image = Image.new("RGB", (120, 40))
    image.paste((255, 0, 0), (0, 0, 40, 40))  # outside of a centre crop
    image.save(tmp_path / "wide.png")
    ((_, pixels),) = visualize._read(recipe(model="ltm_vit_base_patch16_clip_384"), [tmp_path / "wide.png"], 96)[
        0
    ].values()
    wanted = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels, wanted)
    assert pixels[48, 8].tolist() == [255, 0, 0]


def test_deep_grey_is_scaled_and_noted(saved: Path, photo: Path) -> None:
    values = np.full((70, 70), 257 * 90, np.uint16)
    deep = saved.parent / "deep.tif"
    Image.fromarray(values).save(deep)
    read, _ = visualize._read(recipe(), [deep], 64)
    assert (read["deep"][1] == 90).all()
    drawn = visualize_recipe(saved, [deep, photo], out=saved.parent / "out")
    assert drawn.notes[0] == "grey of 16 or 32 bits scaled to 8: 'deep.tif'"


def test_recipes_of_the_digits_show_digits(saved: Path) -> None:
    drawn = visualize_recipe(saved, out=saved.parent / "out")
    assert [file.name for file in drawn.files[::2]] == ["digit-0.png", "digit-1.png", "digit-2.png"]
    data = load_data(
        dataset="digits",
        data_dir=None,
        img_size=64,
        **input_config(BACKBONE),
        val_images=3,
        calibration_images=1,
        seed=0,
    )
    shown = [pixels for _, pixels in visualize._read(recipe(), [], 64)[0].values()]
    seen = [data.transforms.evaluation(Image.fromarray(data.validation.pixels(i)).convert("RGB")) for i in range(3)]
    assert all(np.array_equal(a, b.permute(1, 2, 0).numpy()) for a, b in zip(shown, seen, strict=True))


def test_weights_are_those_beside_the_recipe(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    look = visualize._look

    def spy(recipe: Recipe, model: nn.Module, pixels: np.ndarray) -> Any:
        used.append(first_sum(model))
        return look(recipe, model, pixels)

    monkeypatch.setattr(visualize, "_look", spy)
    run = tmp_path / "run"
    (run / "recipes").mkdir(parents=True)
    in_run = recipe().save(run / "recipes/8.yaml")
    before = torch.get_rng_state()
    fresh = visualize_recipe(in_run, [photo])
    assert torch.equal(before, torch.get_rng_state())
    assert fresh.weights == "random, untrained"
    assert "an untrained network mean little" in fresh.notes[0]
    assert visualize_recipe(in_run, [photo]) == fresh
    assert used[0] == used[1], "the same fresh weights each time"

    supernet = randomise(Supernet(BACKBONE, num_classes=4), 3)
    (run / "supernet.safetensors").write_bytes(pack_weights(supernet.state_dict(), {"space": "x"}))
    shared = visualize_recipe(in_run, [photo])
    assert shared.weights == "run/supernet.safetensors"
    assert "BatchNorm statistics are not those of one subnet" in shared.notes[0]
    assert used[2] == pytest.approx(first_sum(supernet))

    for name in ("best.safetensors", "model.safetensors"):  # of a training, of an export
        folder = tmp_path / name.partition(".")[0]
        weights(folder / name)
        beside = recipe().save(folder / "recipe.yaml")
        assert visualize_recipe(beside, [photo]).weights == f"{folder.name}/{name}"
    recipe().save(folder / "8.yaml")
    assert visualize_recipe(folder / "8.yaml", [photo]).weights == "random, untrained", "not of this recipe"


def test_nothing_is_drawn_of_another_size_than_asked_for(saved: Path, photo: Path) -> None:
    drawn = visualize_recipe(saved, [photo], img_size=96, place=(95, 0))
    page = drawn.files[1].read_text(encoding="utf-8")
    assert '"size":[96,96]' in page
    assert '"place":[95,0]' in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.yaml", "--image", "photo.jpg"), "none.yaml"),
        (("8.yaml", "--image", "none.jpg"), "the image none.jpg cannot be read: No such file or directory"),
        (("8.yaml", "--image", "."), "the image . cannot be read: Is a directory"),
        (("8.yaml", "--image", "8.yaml"), "the image 8.yaml cannot be read: Pillow does not recognise its format"),
        (("8.yaml", "--image", "cut.jpg"), "the image cut.jpg cannot be read: "),
        (("8.yaml", "--image", "photo.jpg", "none.jpg"), "the image none.jpg cannot be read"),
        (("folder.yaml",), "--image FILE is required"),
        (("plain.yaml", "--image", "photo.jpg"), "plain.yaml must merge in some layer"),
        (("coarse.yaml", "--image", "photo.jpg"), "coarse.yaml merges in no layer at 64 px: on grids this"),
        (("stranger.yaml", "--image", "photo.jpg"), "unknown backbone 'mobilevit_xxl': did you mean"),
        (("8.yaml", "--image", "photo.jpg", "--checkpoint", "none"), "the checkpoint must be a file, but none does"),
        (("8.yaml", "--image", "photo.jpg", "--checkpoint", "vit.safetensors"), "it seems to be of another network"),
        (
            ("8.yaml", "--image", "photo.jpg", "--checkpoint", "seven.safetensors"),
            "must contain every tensor of ltm_mob",
        ),
        (("8.yaml", "--image", "photo.jpg", "--at", "3"), "--at must be two numbers X,Y, such as 112,80, but got '3'"),
        (("8.yaml", "--image", "photo.jpg", "--at", "3,64"), "a pixel of the image of 64 x 64 px, but got 3,64"),
        (("8.yaml", "--image", "photo.jpg", "--at", "nan,1"), "a pixel of the image of 64 x 64 px, but got nan,1"),
        (("8.yaml", "--image", "photo.jpg", "--img-size", "8"), "--img-size must be 32 or more, but got 8"),
        (
            ("8.yaml", "--image", "photo.jpg", "--out", "photo.jpg"),
            "the folder photo.jpg cannot be written: it is a file",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    saved: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved.parent
    (folder / "cut.jpg").write_bytes(photo.read_bytes()[:900])
    recipe(provenance={}).save(folder / "folder.yaml")
    recipe(schedule={LAYER: 1.0}).save(folder / "plain.yaml")
    recipe(schedule={"stages.4.1.transformer.0": 0.9}, forms={}).save(folder / "coarse.yaml")
    recipe(model="ltm_mobilevit_xxl").save(folder / "stranger.yaml")
    weights(folder / "seven.safetensors", num_classes=7)
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=4)
    save_file(vit.state_dict(), folder / "vit.safetensors")
    before = {path.name for path in folder.iterdir()}
    monkeypatch.chdir(folder)
    code, _, err = call("visualize", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == before, "nothing is written"


def test_an_unknown_layer_is_told(saved: Path, photo: Path) -> None:
    recipe(schedule={"blocks.3": 0.5}).save(saved)
    with pytest.raises(InputError, match="unknown layer 'blocks.3'"):
        visualize_recipe(saved, [photo])


def test_names_that_break_lines(
    tmp_path: Path, saved: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    odd = photo.rename(folder / "c\na\x1b[31mt [red].jpg")
    long = folder / f"{'n' * 246}.jpg"
    long.write_bytes(odd.read_bytes())
    arguments = ("visualize", str(saved), "--image", str(odd), "--image", str(long), "--out", str(folder / "out"))
    code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    names = {"c-a-[31mt [red].html", "c-a-[31mt [red].png", f"{'n' * 150}.html", f"{'n' * 150}.png"}
    assert {path.name for path in (folder / "out").iterdir()} == names
    printed = [line for line in out.splitlines() if "out/" in line]
    assert len(printed) == 4
    assert all(r"a\nb/out/" in line for line in printed)
    assert "\x1b" not in out + err
    assert r"c\na\x1b[31mt [red].jpg" in (folder / "out" / "c-a-[31mt [red].html").read_text()
