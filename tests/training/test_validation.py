"""`ltmsearch validate`: known results, and refused input."""

import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from support.command_line import Ltmsearch, tiny
from support.nets import randomise
from torch import Tensor, nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe
from ltmsearch.costs import traced_macs
from ltmsearch.data.loading import load_data
from ltmsearch.engine.evaluation import agreement
from ltmsearch.engine.ib_loss import IBLoss, IBMeter, input_features
from ltmsearch.errors import InputError
from ltmsearch.models import get_adapter, input_config, pooled_features
from ltmsearch.models.checkpoints import pack_weights
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import SCORING_BATCH
from ltmsearch.training import validation
from ltmsearch.training.validation import ValidationRecord, print_validation, validate_recipe

BACKBONE = "mobilevit_xxs"
LAYERS = get_adapter(BACKBONE).layers(timm.create_model(BACKBONE))
COUNTS = (6, 1, 2, 1, 3, 5, 2)
"""Validation images of each class."""
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def recipe(classes: int = len(COUNTS), **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": f"ltm_{BACKBONE}", "operator": "ltm", "num_classes": classes, "img_size": 32, "ib_beta": 10.0,
        "schedule": {layer: 0.5 if place % 2 else 1.0 for place, layer in enumerate(LAYERS)},
    }  # fmt: skip
    return Recipe(**(values | changes))


def image_folder(root: Path, counts: Sequence[int]) -> Path:
    """Noise in a colour for each class; two training images a class."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 128, (len(counts), 3))
    for split, numbers in (("train", [2] * len(counts)), ("validation", counts)):
        for label, number in enumerate(numbers):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = colours[label] + rng.integers(0, 128, (40, 44, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"), COUNTS)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Path, ValidationRecord]:
    """Weights of a net, and its record with all defaults."""
    checkpoint = saved(network(recipe()), tmp_path_factory.mktemp("weights") / "w")
    return checkpoint, validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, **CPU)


def network(of: Recipe, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(timm.create_model(of.model, **of.model_kwargs()), seed).eval()


def constant(of: Recipe, logits: Sequence[float]) -> nn.Module:
    """A network with constant logits."""
    model = network(of)
    with torch.no_grad():
        classifier: Any = model.get_classifier()  # type: ignore[operator]
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor(logits))
    return model


def saved(model: nn.Module, path: Path, facts: dict[str, Any] | None = None) -> Path:
    path = path.with_suffix(".safetensors")
    metadata = None if facts is None else {"ltmsearch": json.dumps(facts)}
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata=metadata)
    return path


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
        img_size=settings.proxy_img_size, batch_size=SCORING_BATCH, **CPU,
    )  # fmt: skip
    assert (record.agreement, record.agreement_se) == agreed
    assert record.top1 == merged.top1
    assert record.loss == pytest.approx(merged.loss, rel=1e-4)


def test_built_in_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "STATISTICS_IMAGES", 20)
    checkpoint = saved(network(recipe(10)), tmp_path / "w")
    record = validate_recipe(recipe(10), checkpoint=checkpoint, val_images=20, **CPU)
    assert (record.data, record.images) == ("digits", 20)


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


NAMES = [f"class {label}" for label in range(len(COUNTS))]


@pytest.fixture
def tested(tmp_path: Path) -> Path:
    """The validation images of `photos` as a test set, and nothing else."""
    root = image_folder(tmp_path / "data", COUNTS)
    (root / "validation").rename(root / "test")
    shutil.rmtree(root / "train")
    return root


@pytest.mark.parametrize("facts", [{"class_names": NAMES}, None], ids=["named", "nameless"])
def test_a_test_set_alone_gives_the_same_scores(
    tested: Path, scored: tuple[Path, ValidationRecord], facts: dict[str, Any] | None
) -> None:
    checkpoint = saved(network(recipe()), tested / "w", facts)
    record = validate_recipe(recipe(), checkpoint=checkpoint, data_dir=tested, **CPU)
    for name in ("images", "top1", "top5", "loss"):
        assert getattr(record, name) == getattr(scored[1], name)
    assert record.data == f"folder '{tested}', test"
    assert (record.mi_x, record.mi_y, record.ib, record.ibb) == (None,) * 4
    assert record.notes == ["without training images the information terms are unknown"]
    stream = io.StringIO()
    print_validation(Console(file=stream, width=80), record)
    assert "its upper bound IBB is -" in stream.getvalue()


def test_labels_of_a_test_set_go_by_the_names_of_the_checkpoint(tested: Path) -> None:
    for label in (0, 1, 3, 4, 5, 6):  # without training, the remaining class would be number 0
        shutil.rmtree(tested / "test" / f"class {label}")
    logits = [0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0]
    named = saved(constant(recipe(), logits), tested / "named", {"class_names": NAMES})
    assert validate_recipe(recipe(), checkpoint=named, data_dir=tested, **CPU).top1 == 100
    nameless = saved(constant(recipe(), logits), tested / "nameless")
    with pytest.raises(InputError, match="but is 7; .*name no classes, and without training images the folder must"):
        validate_recipe(recipe(), checkpoint=nameless, data_dir=tested, **CPU)
    (tested / "test" / "class 2").rename(tested / "test" / "cat")
    with pytest.raises(InputError, match="test classes must be among those the network was .* but 'cat' are not"):
        validate_recipe(recipe(), checkpoint=named, data_dir=tested, **CPU)


def test_the_split_is_validation_or_else_test_or_the_one_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", (3, 2))
    shutil.copytree(root / "validation", root / "test")
    (root / "test" / "class 1" / "0.png").unlink()
    checkpoint = saved(network(recipe(2)), tmp_path / "w")
    images = {}
    for split in (None, "validation", "test"):
        record = validate_recipe(recipe(2), checkpoint=checkpoint, data_dir=root, split=split, **CPU)
        images[split] = record.images, record.data.removeprefix(f"folder '{root}'"), record.mi_x is not None
    assert images == {None: (5, "", True), "validation": (5, "", True), "test": (4, ", test", True)}
    shutil.rmtree(root / "validation")
    assert validate_recipe(recipe(2), checkpoint=checkpoint, data_dir=root, **CPU).images == 4
    with pytest.raises(InputError, match="must contain validation/ or val/ or valid/, but it contains 'test', 'train'"):
        validate_recipe(recipe(2), checkpoint=checkpoint, data_dir=root, split="validation", **CPU)
    shutil.rmtree(root / "test")
    with pytest.raises(InputError, match="must contain validation/ or val/ or valid/ or test/ or testing/, but"):
        validate_recipe(recipe(2), checkpoint=checkpoint, data_dir=root, **CPU)


def test_shared_weights_need_training_images_for_batchnorm(tested: Path) -> None:
    shared = saved(network(recipe()), tested / "shared", {"class_names": NAMES, "space": "x"})
    with pytest.raises(InputError, match="need training images, for BatchNorm statistics, but .* `ltmsearch export`"):
        validate_recipe(recipe(), checkpoint=shared, data_dir=tested, **CPU)


class Progress(Callbacks):
    def __init__(self) -> None:
        self.phases: dict[str, list[int]] = {}

    def phase(self, name: str, total: int) -> None:
        self.phases[name] = [total]

    def advance(self, done: int, status: str = "") -> None:
        list(self.phases.values())[-1].append(done)


def test_progress_counts_images(photos: Path, scored: tuple[Path, ValidationRecord]) -> None:
    progress = Progress()
    validate_recipe(recipe(), checkpoint=scored[0], data_dir=photos, batch_size=8, callbacks=progress, **CPU)
    assert progress.phases == {"reading images": [0], "IB statistics": [14, 8, 14], "validation": [20, 8, 16, 20]}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "img-size": ({"img_size": 16}, "--img-size must be 32 or more, but got 16"),
    "batch-size": ({"batch_size": 0}, "--batch-size must be 1 or more, but got 0"),
    "val-images": ({"val_images": 0}, "--val-images must be 1 or more, but got 0"),
    "precision": ({"precision": "fp8"}, "--precision must be auto, fp32, bf16, but got 'fp8'"),
    "split": ({"split": "tests"}, "--split must be validation, test, but got 'tests': did you mean test"),
    "device": ({"device": "gpu"}, "`--device` must be auto, cpu or cuda, but got 'gpu'"),
    "folder": ({"data_dir": Path("nowhere")}, "must be an existing image folder, but got 'nowhere'"),
    "digits": ({"dataset": "digits"}, "'digits' are built in"),
    "dataset": ({"dataset": "torch/cifar11"}, "unknown dataset 'torch/cifar11'"),
    "checkpoint": ({"checkpoint": Path("none.pth")}, "the checkpoint must be a file, but none.pth does not exist"),
}


@pytest.mark.parametrize(("options", "rule"), WRONG.values(), ids=WRONG)
def test_invalid_options_are_refused(
    photos: Path, scored: tuple[Path, ValidationRecord], options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        validate_recipe(recipe(), **{"checkpoint": scored[0], "data_dir": photos, **CPU, **options})
    assert "\n" not in str(caught.value)


def test_another_number_of_classes_is_refused(tmp_path: Path, photos: Path) -> None:
    checkpoint = saved(network(recipe(5)), tmp_path / "w")
    with pytest.raises(InputError, match="num_classes must be the data's 7, but is 5"):
        validate_recipe(recipe(5), checkpoint=checkpoint, data_dir=photos, **CPU)


def test_other_class_names_are_refused(tmp_path: Path, photos: Path) -> None:
    names = ["class 0", "class 1", "cat", "dog", "cow", "pig", "hen"]
    checkpoint = saved(network(recipe()), tmp_path / "w", {"class_names": names})
    with pytest.raises(InputError, match="class 3 is 'class 2' instead of 'cat'"):
        validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, **CPU)


def test_checkpoint_of_another_network_is_refused(tmp_path: Path, photos: Path) -> None:
    foreign = saved(timm.create_model("efficientvit_b0", num_classes=7), tmp_path / "w")
    with pytest.raises(InputError, match="does not fit .*mobilevit_xxs.* seems to be of another network") as caught:
        validate_recipe(recipe(), checkpoint=foreign, data_dir=photos, **CPU)
    assert "\n" not in str(caught.value)


def test_diverged_networks_are_refused(tmp_path: Path, photos: Path) -> None:
    model = network(recipe())
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(InputError, match=r"must have finite weights, but stem\.conv\.weight has 432 NaN"):
        validate_recipe(recipe(), checkpoint=saved(model, tmp_path / "w"), data_dir=photos, **CPU)
    huge = network(recipe())
    with torch.no_grad():
        huge.get_submodule("head.fc").weight.fill_(3e38)  # type: ignore[operator]
    with pytest.raises(InputError, match="outputs must be finite, but with .* they are not; its training has diverged"):
        validate_recipe(recipe(), checkpoint=saved(huge, tmp_path / "v"), data_dir=photos, **CPU)


def test_full_memory_is_an_input_error(
    photos: Path, scored: tuple[Path, ValidationRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\n")

    monkeypatch.setattr(validation, "step_seconds", full)
    with pytest.raises(InputError, match="must fit in the memory of cpu, but --batch-size 64 does not"):
        validate_recipe(recipe(), checkpoint=scored[0], data_dir=photos, **CPU)


KEYS = [
    "model", "operator", "checkpoint", "data", "img_size", "images", "top1", "top1_se", "top5", "agreement",
    "agreement_se", "loss", "mi_x", "mi_y", "ib", "ibb", "gflops", "gflops_sd", "gflops_quantiles",
    "tokens", "base_gflops", "params", "images_per_second",
    "batch_size", "device", "threads", "precision", "versions", "notes",
]  # fmt: skip


def test_command_prints_json(
    tmp_path: Path, photos: Path, scored: tuple[Path, ValidationRecord], ltmsearch: Ltmsearch
) -> None:
    path = recipe().save(tmp_path / "recipe.yaml")
    checkpoint = scored[0]
    arguments = ("validate", str(path), "--checkpoint", str(checkpoint), "--data-dir", str(photos), "--device", "cpu")
    code, out, _ = ltmsearch(*arguments, "--precision", "fp32", "--json")
    assert code == 0
    told = json.loads(out)
    assert list(told) == KEYS
    wanted = asdict(scored[1])
    del told["images_per_second"], wanted["images_per_second"]
    assert told == wanted


def test_command_reports_wrong_input_in_one_line(tmp_path: Path, photos: Path, ltmsearch: Ltmsearch) -> None:
    path = recipe(5).save(tmp_path / "recipe.yaml")
    arguments = ("validate", str(path), "--checkpoint", "none.pth", "--data-dir", str(photos))
    code, out, err = ltmsearch(*arguments)
    assert (code, out) == (2, "")
    assert err == "error: the checkpoint must be a file, but none.pth does not exist\n"
    code, _, err = ltmsearch("validate", "no.yaml", "--checkpoint", "w")
    assert code == 2
    assert err.count("\n") == 1


RECORD = ValidationRecord(
    model="ltm_mobilevit_s", operator="ltm", checkpoint="best.safetensors", data="folder 'photos'", img_size=224,
    images=50000, top1=79.123, top1_se=0.1818, top5=94.5678, agreement=93.244, agreement_se=0.1122, loss=0.87654,
    mi_x=1.23456, mi_y=2.34567, ib=-1.11111, ibb=-0.5, gflops=1.17034, base_gflops=1.5467, params=5_578_632,
    images_per_second=12345.6, batch_size=256, device="cuda:1", threads=None, precision="bf16", versions={},
    notes=["something to know"],
)  # fmt: skip


def test_table_fits_80_columns() -> None:
    stream = io.StringIO()
    print_validation(Console(file=stream, width=80), RECORD)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 82  # two accents over X have no width of their own
    for words in (
        "ltm_mobilevit_s, ltm merging", "weights: best.safetensors", "data: folder 'photos'", "79.12 ± 0.18 %",
        "50000 images", "94.57 %", "93.24 ± 0.11 %", "with the same weights unmerged", "0.8765", "1.2346", "2.3457",
        "-1.1111", "its upper bound IBB is -0.5000", "1.1703",
        "76% of the plain network's 1.5467, at 224 px", "5.58 M", "12345.6", "images/s, batch 256, cuda:1, bf16",
        "note: something to know",
    ):  # fmt: skip
        assert words in text
