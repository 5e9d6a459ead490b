"""How good and how costly a recipe's network is with given weights: record and table of `ltmsearch validate`."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.costs import GIGA, backbone_costs
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.evaluation import Batches, Score, fit_ib, recalibrate, score
from ltmsearch.engine.ib_loss import IBLoss, IBTerms
from ltmsearch.engine.runtime import Precision, Runtime, choose_runtime, find_device, step_seconds
from ltmsearch.errors import InputError, not_among
from ltmsearch.models import feature_dim, input_config
from ltmsearch.models.checkpoints import TrainedNetwork, load_trained

STATISTICS_IMAGES = 2048
"""Training images, at most, that the statistics behind the information terms are taken from."""
SEED = 0
"""Of the choice of those images, of k-means, and of the built-in digits."""
MEASURED_BATCH = 32
"""Images, at most, of the batch on which number formats are compared."""


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """One network with its weights: how it was scored, and what came of it."""

    model: str
    """timm name, `ltm_<backbone>`."""
    operator: str
    """Merging operator."""
    checkpoint: str
    """File of the weights."""
    data: str
    """Which data set, and where it lies."""
    img_size: int
    """Side of the images, in pixels."""
    images: int
    """Validation images scored."""
    top1: float
    """Top-1 accuracy, 0-100."""
    top1_se: float
    """Its standard error, in points."""
    top5: float | None
    """Top-5 accuracy, 0-100; None with five classes or fewer, where it says nothing."""
    loss: float
    """Mean cross-entropy, nats."""
    mi_x: float
    """I(X̃;X) of features and images, nats: see `IBTerms`."""
    mi_y: float
    """I(X̃;Y) of features and labels, nats."""
    ib: float
    """Their difference."""
    ibb: float
    """Its bound, the IB loss."""
    gflops: float
    """Cost of one image by formula, in 1e9 multiply-adds."""
    base_gflops: float
    """Of the plain net at the same size."""
    params: int
    """Parameters, those of merging operators included."""
    images_per_second: float
    """Of the fastest of three forward passes of `batch_size` images; reading images is not in it."""
    batch_size: int
    """Images per forward pass."""
    device: str
    """Where it ran."""
    threads: int | None
    """CPU threads; None elsewhere."""
    precision: str
    """Number format, `fp32` or `bf16`."""
    versions: dict[str, str]
    """Of Python and the libraries."""
    notes: list[str]
    """What a reader of the numbers must know, a line each; mostly empty."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def validate_recipe(
    recipe: Recipe,
    *,
    checkpoint: Path,
    dataset: str | None = None,
    data_dir: Path | None = None,
    img_size: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    val_images: int | None = None,
    callbacks: Callbacks | None = None,
) -> ValidationRecord:
    """Score a recipe's network with trained weights on validation images.

    The information terms rest on centroids of up to `STATISTICS_IMAGES` training images, seen as in evaluation. With
    the shared weights of a study, BatchNorm statistics are taken from those images first, as for the study's scores.

    Args:
        recipe: The network.
        checkpoint: Its weights: what `ltmsearch train` or `export` wrote, a study's shared weights, or a timm
            checkpoint of the plain net, whose merging operators then start as in trained weights.
        dataset: `digits` (built in), `folder`, or a timm data set name; None: `folder` with `data_dir`, else `digits`.
        data_dir: Where the data lie.
        img_size: Side of the images, in pixels; None: the recipe's.
        batch_size: Images per forward pass. It changes speed and memory, not scores.
        device: `auto`, `cpu`, `cuda`, …
        precision: `auto`, `fp32` or `bf16`.
        val_images: Score so many images, balanced over the classes; None: all of them, of the built-in digits
            `DIGITS_VALIDATION_IMAGES`.
        callbacks: Receives progress.

    Raises:
        InputError: If weights or data do not fit the recipe, or an option cannot be followed.
    """
    callbacks = callbacks or Callbacks()
    size = recipe.img_size if img_size is None else img_size
    checked = _check_options(size, batch_size, precision, val_images)
    place = find_device(device)
    network = load_trained(recipe, checkpoint, img_size=size)
    costs = backbone_costs(recipe.backbone, size, recipe.schedule.operator, num_classes=recipe.num_classes)
    callbacks.phase("reading images", 0)
    data = _open_data(recipe, dataset, data_dir, size, val_images)
    _check_classes(recipe, network, data)
    first = next(data.validation_batches(batch_size=batch_size, limit=batch_size))[0]
    whole = first.repeat(-(-batch_size // len(first)), 1, 1, 1)[:batch_size]
    try:
        runtime = choose_runtime(place, checked, network.model, first[:MEASURED_BATCH])
        result, terms, notes = _score(recipe, network, data, batch_size, runtime, callbacks)
        seconds = step_seconds(runtime, network.model, whole, train=False)
    except torch.OutOfMemoryError:
        raise InputError(
            f"a batch must fit into the memory of {place}, but --batch-size {batch_size} does not"
        ) from None
    return ValidationRecord(
        model=recipe.model,
        operator=recipe.schedule.operator,
        checkpoint=str(checkpoint),
        data=data.title,
        img_size=size,
        images=result.images,
        top1=result.top1,
        top1_se=result.top1_se,
        top5=result.top5,
        loss=result.loss,
        mi_x=terms.mi_x,
        mi_y=terms.mi_y,
        ib=terms.ib,
        ibb=terms.ibb,
        gflops=costs.gflops(recipe.schedule),
        base_gflops=costs.base_macs / GIGA,
        params=sum(parameter.numel() for parameter in network.model.parameters()),
        images_per_second=batch_size / seconds,
        batch_size=batch_size,
        device=str(runtime.device),
        threads=torch.get_num_threads() if runtime.device.type == "cpu" else None,
        precision=runtime.precision,
        versions=dict(library_versions()),
        notes=[*network.notes, *notes],
    )


def print_validation(console: Console, record: ValidationRecord) -> None:
    """A table of what was found, and below it the notes."""
    where = f"{record.device}, {record.precision}" + (_threads(record.threads))
    rows = [
        ("top-1", f"{record.top1:.2f} ± {record.top1_se:.2f} %", f"{record.images} images"),
        ("top-5", "-" if record.top5 is None else f"{record.top5:.2f} %", ""),
        ("loss", f"{record.loss:.4f}", "cross-entropy, nats"),
        ("I(X̃;X)", _nats(record.mi_x), "features and images, nats"),
        ("I(X̃;Y)", _nats(record.mi_y), "features and labels, nats"),
        ("IB", _nats(record.ib), f"the difference; its bound IBB is {_nats(record.ibb)}"),
        ("GFLOPs", f"{record.gflops:.4f}", f"{record.gflops / record.base_gflops:.0%} of the plain net's "
         f"{record.base_gflops:.4f}, at {record.img_size} px"),
        ("parameters", f"{record.params / 1e6:.2f} M", ""),
        ("throughput", f"{record.images_per_second:.1f}", f"images/s, batch {record.batch_size}, {where}"),
    ]  # fmt: skip
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    for line in (f"{record.model}, {record.operator} merging", f"weights: {record.checkpoint}", f"data: {record.data}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for note in record.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _nats(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # no minus before zero


def _threads(number: int | None) -> str:
    return "" if number is None else f", {number} thread{'s' if number > 1 else ''}"


def _check_options(img_size: int, batch_size: int, precision: str, val_images: int | None) -> Precision:
    for name, value, least in (
        ("img-size", img_size, 32),
        ("batch-size", batch_size, 1),
        ("val-images", val_images, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"--{name} must be {least} or more, but got {value}")
    if img_size > 2048:
        raise InputError(f"--img-size must be 2048 or less, but got {img_size}")
    choices: tuple[Precision, ...] = get_args(Precision)
    for choice in choices:
        if precision == choice:
            return choice
    raise not_among("--precision", precision, choices)


def _score(
    recipe: Recipe, network: TrainedNetwork, data: ImageData, batch_size: int, runtime: Runtime, callbacks: Callbacks
) -> tuple[Score, IBTerms, list[str]]:
    """Scores, information terms, and what was met on the way."""
    model, notes = runtime.prepare(network.model), []

    def calibration(phase: str) -> Batches:
        batches = data.calibration_batches(batch_size=batch_size)
        return _told(batches, callbacks, phase, len(data.calibration_keys))

    if network.shared and any(isinstance(module, _BatchNorm) for module in model.modules()):
        recalibrate(model, calibration("BatchNorm statistics"), runtime)
        notes.append("shared weights of a study: BatchNorm statistics are taken anew, as for the study's scores")
    model.eval()
    ib = IBLoss(feature_dim=feature_dim(model), num_classes=data.num_classes, beta=recipe.ib_beta).to(runtime.device)
    if not fit_ib(ib, model, calibration("IB statistics"), runtime):
        raise _not_finite(network, runtime)
    batches = data.validation_batches(batch_size=batch_size)
    result = score(model, _told(batches, callbacks, "validation", data.validation_size), runtime, ib=ib)
    if result.ib is None or not math.isfinite(result.loss):
        raise _not_finite(network, runtime)
    if data.skipped:
        notes.append(f"{len(data.skipped)} unreadable images left out, such as {data.skipped[0]}")
    return result, result.ib, notes


def _open_data(
    recipe: Recipe, dataset: str | None, data_dir: Path | None, img_size: int, val_images: int | None
) -> ImageData:
    dataset = dataset or ("folder" if data_dir else "digits")
    return load_data(
        dataset=dataset,
        data_dir=data_dir,
        img_size=img_size,
        **input_config(recipe.backbone),
        val_images=val_images,
        calibration_images=STATISTICS_IMAGES,
        seed=SEED,
        memory_limit_bytes=0,  # every image is seen once, and most training images never
    )


def _check_classes(recipe: Recipe, network: TrainedNetwork, data: ImageData) -> None:
    if data.num_classes != recipe.num_classes:
        raise InputError(
            f"the recipe's num_classes must be the data's {data.num_classes}, but is {recipe.num_classes}; the data "
            "that the weights were trained on would do"
        )
    trained = network.class_names
    if trained is not None and trained != data.class_names:
        place = next(i for i in range(len(trained)) if trained[i] != data.class_names[i])
        raise InputError(
            f"the data must have the classes that {network.checkpoint} was trained on, but class {place + 1} is "
            f"{data.class_names[place]!r}, there {trained[place]!r}"
        )


def _told(batches: Batches, callbacks: Callbacks, phase: str, total: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; the callbacks hears how many images have passed."""
    callbacks.phase(phase, total)
    done = 0
    for images, labels in batches:
        yield images, labels
        done += len(images)
        callbacks.advance(done)


def _not_finite(network: TrainedNetwork, runtime: Runtime) -> InputError:
    hint = "--precision fp32 may do" if runtime.precision != "fp32" else "its training has diverged"
    return InputError(f"the network must answer with finite numbers, but with {network.checkpoint} it does not; {hint}")
