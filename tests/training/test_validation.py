"""`ltmsearch validate`: known results."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from support.command_line import tiny
from support.nets import randomise
from support.validated import BACKBONE, COUNTS, CPU, constant, image_folder, network, recipe, saved
from torch import Tensor, nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe
from ltmsearch.costs import traced_macs
from ltmsearch.data.loading import load_data
from ltmsearch.engine.evaluation import agreement
from ltmsearch.engine.ib_loss import IBLoss, IBMeter, input_features
from ltmsearch.models import get_adapter, input_config, pooled_features
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare
from ltmsearch.training import validation
from ltmsearch.training.validation import ValidationRecord, validate_recipe


def seen_by_evaluation(root: Path, of: Recipe) -> tuple[Tensor, Tensor]:
    """The validation images as timm's evaluation transform gives them, and labels, by name."""
    config = timm.data.resolve_data_config({}, model=timm.create_model(BACKBONE))
    transform = timm.data.create_transform(
        of.img_size, mean=config["mean"], std=config["std"], interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
    )  # fmt: skip
    files = sorted((root / "validation").rglob("*.png"))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])  # type: ignore[operator]
    return images, torch.tensor([int(file.parent.name.split()[1]) for file in files])


def test_scores_of_known_logits(tmp_path: Path, photos: Path) -> None:
    logits = [0.0, 1.0, 5.0, 2.0, 3.0, 4.0, -1.0]  # in the first five places 2, 5, 4, 3, 1; never 0 and 6
    checkpoint = saved(constant(recipe(), logits), tmp_path / "w")
    record = validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, **CPU)
    number = sum(COUNTS)
    assert record.images == number == 20
    assert record.top1 == pytest.approx(100 * 2 / 20)
    assert record.top1_se == pytest.approx(100 * math.sqrt(0.1 * 0.9 / 20))
    assert record.top5 == pytest.approx(100 * (2 + 5 + 3 + 1 + 1) / 20)
    normaliser = math.log(sum(math.exp(logit) for logit in logits))
    wanted = sum(count * (normaliser - logit) for count, logit in zip(COUNTS, logits, strict=True)) / number
    assert record.loss == pytest.approx(wanted, abs=1e-5)


def test_constant_features_have_no_information(tmp_path: Path, photos: Path) -> None:
    model = constant(recipe(), [0.0] * 7)
    with torch.no_grad():
        last: Any = model.get_submodule("final_conv.bn")
        last.weight.zero_()
    record = validate_recipe(recipe(), checkpoint=saved(model, tmp_path / "w"), data_dir=photos, **CPU)
    assert (record.mi_x, record.mi_y, record.ib) == pytest.approx((0, 0, 0), abs=1e-9)


def test_scores_match_a_plain_loop(photos: Path, scored: tuple[Path, ValidationRecord]) -> None:
    record = scored[1]
    images, labels = seen_by_evaluation(photos, recipe())
    with torch.no_grad():
        logits = network(recipe())(images)
    places = (logits > logits.gather(1, labels[:, None])).sum(1)  # how many classes come before the right one
    assert record.top1 == pytest.approx(100 * float((places == 0).float().mean()))
    assert record.top5 == pytest.approx(100 * float((places < 5).float().mean()))
    assert record.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_information_terms_match_a_plain_loop(tmp_path: Path, photos: Path) -> None:
    sharp = recipe(ib_beta=1000.0)  # images look much alike to a net that was never trained
    model = network(sharp)
    record = validate_recipe(sharp, checkpoint=saved(model, tmp_path / "w"), data_dir=photos, **CPU)
    config = input_config(BACKBONE)
    data = load_data(
        dataset="folder", data_dir=photos, img_size=32, mean=config["mean"], std=config["std"],
        interpolation=config["interpolation"], crop_pct=config["crop_pct"], val_images=100, calibration_images=100,
        seed=0,
    )  # fmt: skip
    ((training, training_labels),) = data.calibration_batches(batch_size=100)
    images, labels = seen_by_evaluation(photos, sharp)
    with torch.no_grad(), pooled_features(model) as seen:
        model(training)
        model(images)
    ib = IBLoss(feature_dim=seen[0].shape[1], num_classes=7, beta=1000.0)
    ib.fit(seen[0], input_features(training), training_labels, seed=0)
    meter = IBMeter(ib)
    meter.add(seen[1], input_features(images), labels)
    terms = meter.terms()
    assert terms.mi_x > 0.05
    assert (record.mi_x, record.mi_y, record.ibb) == pytest.approx((terms.mi_x, terms.mi_y, terms.ibb), rel=1e-3)
    assert record.ib == record.mi_x - record.mi_y


def test_batch_size_does_not_change_scores(photos: Path, scored: tuple[Path, ValidationRecord]) -> None:
    checkpoint, many = scored
    one = validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, batch_size=3, **CPU)
    for name in ("top1", "top5", "images", "gflops", "params"):
        assert getattr(one, name) == getattr(many, name)
    for name in ("loss", "mi_x", "mi_y", "ib", "ibb"):
        assert getattr(one, name) == pytest.approx(getattr(many, name), rel=1e-4, abs=1e-6)
    assert (one.batch_size, many.batch_size) == (3, 64)


@pytest.mark.parametrize("side", [32, 64])
def test_cost_and_parameters_match_the_network(photos: Path, scored: tuple[Path, ValidationRecord], side: int) -> None:
    checkpoint, record = scored
    if side != recipe().img_size:
        record = validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, img_size=side, val_images=3, **CPU)
        assert record.images == 3
    model = network(recipe())
    assert record.img_size == side
    assert record.gflops == pytest.approx(traced_macs(model, (side, side)) / 1e9, abs=0)
    assert record.base_gflops == pytest.approx(
        traced_macs(timm.create_model(BACKBONE, num_classes=7).eval(), (side, side)) / 1e9, abs=0
    )
    assert record.gflops < record.base_gflops
    assert record.params == sum(p.numel() for p in model.parameters())


def test_five_classes_have_no_top5(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", (1, 1, 1, 1, 1))
    checkpoint = saved(network(recipe(5)), tmp_path / "w")
    assert validate_recipe(recipe(5), checkpoint=checkpoint, data_dir=root, **CPU).top5 is None


def test_agreement_matches_a_plain_loop(tmp_path: Path, photos: Path) -> None:
    model, plain = network(recipe(), seed=6), timm.create_model(BACKBONE, num_classes=7).eval()
    record = validate_recipe(recipe(), checkpoint=saved(model, tmp_path / "w"), data_dir=photos, **CPU)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if ".merging." not in name})
    images, _ = seen_by_evaluation(photos, recipe())
    with torch.no_grad():
        share = float((model(images).argmax(1) == plain(images).argmax(1)).float().mean())
    assert 0 < share < 1
    assert record.agreement == pytest.approx(100 * share)
    assert record.agreement_se == pytest.approx(100 * math.sqrt(share * (1 - share) / 20))


SLOW = pytest.mark.slow


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "shared"),
    [
        (BACKBONE, False),
        (BACKBONE, True),
        ("vit_tiny_patch16_224", False),
        pytest.param("efficientvit_b0", False, marks=SLOW),
        pytest.param("efficientvit_b0", True, marks=SLOW),
        pytest.param("swin_tiny_patch4_window7_224", False, marks=SLOW),
    ],
)
def test_an_unmerged_network_agrees_with_itself(tmp_path: Path, photos: Path, backbone: str, shared: bool) -> None:
    layers = get_adapter(backbone).layers(timm.create_model(backbone))
    unmerged = recipe(model=f"ltm_{backbone}", schedule=dict.fromkeys(layers, 1.0), img_size=64)
    facts = {"space": "x"} if shared else None
    checkpoint = saved(network(unmerged), tmp_path / "w", facts)
    record = validate_recipe(unmerged, checkpoint=checkpoint, data_dir=photos, **CPU)
    assert (record.agreement, record.agreement_se) == (100.0, 0.0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "gflops"), [(BACKBONE, 0.27), pytest.param("vit_tiny_patch16_224", 1.0, marks=SLOW)]
)
def test_scores_of_shared_weights_are_those_of_the_study(
    tmp_path: Path, backbone: str, gflops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same images, with BatchNorm, whose statistics are each network's own, and without."""
    evaluator = prepare(tiny(tmp_path, backbone=backbone, budget_gflops=gflops), Callbacks()).evaluator
    supernet, settings = randomise(evaluator.supernet), evaluator.settings
    ratios = {layer: 0.5 if place % 2 else 1.0 for place, layer in enumerate(evaluator.supernet.layers)}
    merged, plain = (
        evaluator.score(MergeSchedule(keep_ratios=kept), "validation") for kept in (ratios, dict.fromkeys(ratios, 1.0))
    )
    agreed = agreement(merged.predictions, plain.predictions)
    assert 0 < agreed[0] < 100

    checkpoint = tmp_path / "shared.safetensors"
    checkpoint.write_bytes(pack_weights(supernet.state_dict(), {"space": "x"}))
    monkeypatch.setattr(validation, "STATISTICS_IMAGES", settings.calibration_images)
    record = validate_recipe(
        recipe(10, model=f"ltm_{backbone}", schedule=ratios), checkpoint=checkpoint, val_images=24,
        img_size=settings.proxy_img_size, batch_size=settings.scoring_batch_size, **CPU,
    )  # fmt: skip
    assert (record.agreement, record.agreement_se) == agreed
    assert record.top1 == merged.top1
    assert record.loss == pytest.approx(merged.loss, rel=1e-4)


def test_built_in_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "STATISTICS_IMAGES", 20)
    checkpoint = saved(network(recipe(10)), tmp_path / "w")
    record = validate_recipe(recipe(10), checkpoint=checkpoint, val_images=20, **CPU)
    assert (record.data, record.images) == ("digits", 20)


@pytest.mark.long
def test_shared_weights_get_own_batchnorm_statistics(
    tmp_path: Path, photos: Path, scored: tuple[Path, ValidationRecord]
) -> None:
    model = network(recipe())
    names = [f"class {label}" for label in range(7)]
    shared = saved(model, tmp_path / "shared", {"class_names": names, "space": "x"})
    record = validate_recipe(recipe(), checkpoint=shared, data_dir=photos, **CPU)
    assert record.notes == ["shared weights of a study: BatchNorm statistics are recomputed, as for the study's scores"]
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.fill_(1.0)
    other = saved(model, tmp_path / "other", {"class_names": names, "space": "x"})
    again = validate_recipe(recipe(), checkpoint=other, data_dir=photos, **CPU)
    assert again.loss == record.loss  # whatever statistics the file holds
    assert scored[1].loss != record.loss
    assert scored[1].notes == []


def test_unreadable_images_are_skipped(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos", (2, 2))
    broken = root / "validation" / "class 1" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    record = validate_recipe(recipe(2), checkpoint=saved(network(recipe(2)), tmp_path / "w"), data_dir=root, **CPU)
    assert record.images == 3
    assert record.notes == ["1 unreadable skipped: 'validation/class 1/0.png'"]
