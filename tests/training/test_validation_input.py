"""`ltmsearch validate`: test sets and splits, refused input, and what the command prints."""

import io
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from support.command_line import Ltmsearch
from support.validated import COUNTS, CPU, constant, image_folder, network, recipe, saved

from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.training import validation
from ltmsearch.training.validation import ValidationRecord, print_validation, validate_recipe

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


@pytest.mark.long
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
    with pytest.raises(InputError, match="but lack 'cat' and have 'class 2'; rename folders, or use the data"):
        validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, **CPU)
    checkpoint = saved(network(recipe()), tmp_path / "v", {"class_names": [*NAMES[1:], NAMES[0]]})
    with pytest.raises(InputError, match="class 1 is 'class 0' instead of 'class 1'; give their order"):
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
