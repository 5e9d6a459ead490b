"""Recipes that merge by threshold: train, validate, draw and export; their cost is that of each image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.command_line import Ltmsearch, Notes

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.costs import backbone_costs, image_macs, traced_macs
from ltmsearch.data.loading import load_data
from ltmsearch.engine.image_costs import COST_IMAGES
from ltmsearch.errors import InputError
from ltmsearch.models import create_subnet, input_config
from ltmsearch.training.options import BEST, RECIPE, TrainingOptions
from ltmsearch.training.trainer import train_recipe
from ltmsearch.training.validation import ValidationRecord, validate_recipe

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2}
THRESHOLDS = {"blocks.0": 0.995, "blocks.1": 0.99, "blocks.2": 1.0}
VALIDATION = 24


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": f"ltm_{VIT}", "operator": "threshold", "schedule": THRESHOLDS, "num_classes": 10, "img_size": 64,
        "model_kwargs": SMALL, "epochs": 1, "warmup_epochs": 0, "train_steps_per_epoch": 2, "batch_size": 8,
        "ib_weight": 0.0, "model_ema": False, "amp": False,
    }  # fmt: skip
    return Recipe(**(values | changes))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training on the built-in digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        patch.setattr("ltmsearch.data.loading.DIGITS_VALIDATION_IMAGES", 16)
        notes = Notes()
        folder = tmp_path_factory.mktemp("training")
        result = train_recipe(recipe(), TrainingOptions(out=folder, dataset="digits", device="cpu"), notes)
    (line,) = [line for line in notes.lines if "GFLOPs" in line]
    assert f"per image, mean of {COST_IMAGES} training images now" in line
    assert 0 < result.gflops < costs_of(recipe()).base / 1e9 * 1.1
    return folder


def costs_of(of: Recipe) -> Any:
    return backbone_costs(VIT, of.img_size, "threshold", **of.network)


def validate(folder: Path, **changes: Any) -> ValidationRecord:
    of = load_recipe(folder / RECIPE).changed(changes)
    return validate_recipe(
        of, checkpoint=folder / BEST, dataset="digits", device="cpu", precision="fp32", val_images=VALIDATION,
        batch_size=7,
    )  # fmt: skip


@pytest.mark.long
def test_costs_of_a_validation_are_those_of_each_image(training: Path) -> None:
    record, of = validate(training), load_recipe(training / RECIPE)
    net = create_subnet(VIT, **of.model_kwargs()).eval()
    net.load_state_dict(load_file(training / BEST))
    data = load_data(
        dataset="digits", data_dir=None, img_size=64, **input_config(VIT, of.images), val_images=VALIDATION,
        calibration_images=1, seed=0,
    )  # fmt: skip
    images = torch.cat([batch for batch, _ in data.validation_batches(batch_size=8)])
    macs = [traced_macs(net, (64, 64), image=image[None]) for image in images]
    assert len(set(macs)) > 1, "the images differ"
    assert record.gflops == pytest.approx(np.mean(macs) / 1e9)
    assert record.gflops_sd == pytest.approx(np.std(macs) / 1e9)
    assert record.gflops_quantiles is not None
    assert record.gflops_quantiles["0.95"] == sorted(macs)[22] / 1e9, "23 of 24 images are 96 %"
    assert record.tokens is not None
    assert list(record.tokens) == list(THRESHOLDS)
    assert record.tokens["blocks.2"] == record.tokens["blocks.1"] <= record.tokens["blocks.0"] <= 16
    low, high = (image_macs(costs_of(of), of.schedule, kept) for kept in ((8, 4, 4), (16, 16, 16)))
    assert low <= min(macs) <= max(macs) <= high


def test_a_plain_recipe_has_one_cost(training: Path) -> None:
    record = validate(training, schedule=dict.fromkeys(THRESHOLDS, 1.0))
    assert record.gflops == record.base_gflops
    assert (record.gflops_sd, record.gflops_quantiles, record.tokens) == (None, None, None)
    assert record.agreement == 100


def test_validation_prints_mean_and_spread(training: Path, ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch(
        "validate", str(training / RECIPE), "--checkpoint", str(training / BEST), "--dataset", "digits",
        "--val-images", "8", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "over images; 5 %: 0.00" in out
    assert "after the last layer, mean over images" in out


def test_merges_are_drawn(training: Path, ltmsearch: Ltmsearch, tmp_path: Path) -> None:
    of = load_recipe(training / RECIPE)
    path = of.changed({"provenance": {"dataset": "digits"}}).save(tmp_path / "mine.yaml")
    code, _, err = ltmsearch("visualize", str(path), "--checkpoint", str(training / BEST))
    assert code == 0, err
    assert len(list((tmp_path / "mine-merges").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("export", "RUN", "--program"), "a network that merges by threshold cannot be exported: how many tokens"),
        (("export", "RUN", "--onnx", "--weights"), "a network that merges by threshold cannot be exported"),
        (("profile", VIT, "--operator", "threshold"), "the latency of threshold merging depends on the image"),
        (("profile", "RUN/recipe.yaml"), "the latency of threshold merging depends on the image"),
        (("cost", VIT, "--operator", "threshold", "--keep", "0.9"), "`ltmsearch validate RECIPE --checkpoint FILE`"),
        (("cost", VIT, "--operator", "threshold", "--keep=-8"), "thresholds of threshold merging must be in (0, 1]"),
        (("cost", "mobilevit_xxs", "--operator", "threshold"), "a network of the families eva, vit"),
        (
            ("run", "--backbone", VIT, "--operator", "threshold", "--budget-ms", "5"),
            "budget_ms cannot be met by threshold merging",
        ),
    ],
)
def test_refusals_in_one_line(training: Path, ltmsearch: Ltmsearch, command: tuple[str, ...], message: str) -> None:
    before = sorted(training.rglob("*"))
    code, out, err = ltmsearch(*(word.replace("RUN", str(training)) for word in command))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1, err
    assert sorted(training.rglob("*")) == before


def test_weights_are_exported_for_timm(training: Path, ltmsearch: Ltmsearch) -> None:
    code, _, err = ltmsearch("export", str(training), "--weights")
    assert code == 0, err
    of = load_recipe(training / "export" / RECIPE)
    assert of.schedule.operator == "threshold"
    assert dict(of.schedule.keep_ratios) == THRESHOLDS


def test_the_space_without_weights_shows_the_most_that_merges(ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch("space", VIT, "--operator", "threshold", "--img-size", "96")
    assert code == 0, err
    assert "costs depend on the image, and are" in " ".join(out.split())
    assert "A layer merges at most half of its tokens" in " ".join(out.split())


def test_plain_networks_have_a_cost(ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch("cost", VIT, "--operator", "threshold", "--img-size", "96")
    assert code == 0, err
    assert "100% of the plain net's" in out
    with pytest.raises(InputError, match="depends on weights and images"):
        costs_of(recipe()).macs(recipe().schedule)
