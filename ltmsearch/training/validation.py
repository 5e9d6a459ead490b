"""Accuracy, information terms, cost and speed of a recipe's network with given weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.names import Precision
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.costs import GIGA, CostModel, backbone_costs, image_costs
from ltmsearch.costs.image_costs import QUANTILES
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.data.sources import HeldOut, Scoring
from ltmsearch.engine.evaluation import Batches, Score, agreement, fit_ib, predict, recalibrate, score
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.image_costs import depends_on_images, whole_tokens
from ltmsearch.engine.runtime import Runtime, find_device
from ltmsearch.engine.stopwatch import choose_runtime, step_seconds
from ltmsearch.errors import InputError, check_choice
from ltmsearch.io.console_tables import make_table, print_line
from ltmsearch.models import ImageCounts, counted, feature_dim, input_config
from ltmsearch.models.checkpoints import TrainedNetwork, load_trained
from ltmsearch.schedules.schedule import MergeSchedule

STATISTICS_IMAGES = 2048
"""Training images, at most, for the statistics of the information terms."""
SEED = 0
"""Seed of the choice of those images, of k-means, and of the built-in digits."""
MEASURED_BATCH = 32
"""Images, at most, of the batch on which number formats are compared."""


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """Scores, cost and speed of one network, and the conditions under which they were measured."""

    model: str
    """timm name, `ltm_<backbone>`."""
    operator: str
    checkpoint: str
    data: str
    """Data set and its folder."""
    img_size: int
    images: int
    """Validation images scored; the scores that follow are those of `Score`, but for `agreement`, and `IBTerms`."""
    top1: float
    top1_se: float
    top5: float | None
    agreement: float
    """Share of those images, in percent, for which the plain network with the same weights predicts the same class,
    right or wrong."""
    agreement_se: float
    """Its standard error, in points."""
    loss: float
    mi_x: float | None
    """An information term, like the next three; None: without training images it is unknown."""
    mi_y: float | None
    ib: float | None
    ibb: float | None
    gflops: float
    """Cost of one image by formula, in 1e9 multiply-adds; the mean over the validation images where it depends on the
    image."""
    gflops_sd: float | None = None
    """Standard deviation over those images; None, like the next two, where all images cost the same."""
    gflops_quantiles: dict[str, float] | None = None
    """Share of the images → the cost that they do not exceed."""
    tokens: dict[str, float] | None = None
    """Layer → mean tokens after its merge, without those that never merge."""
    base_gflops: float
    """Cost of the plain network at the same size."""
    params: int
    """Parameters, including those of merging operators."""
    images_per_second: float
    """Throughput of the fastest of three forward passes of `batch_size` images, without data loading."""
    batch_size: int
    device: str
    threads: int | None
    """CPU threads; None on other devices."""
    precision: str
    """Number format, `fp32` or `bf16`."""
    versions: dict[str, str]
    notes: list[str]
    """Remarks on the numbers, one per line; usually empty."""


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
    split: str | None = None,
    layout: DataLayout | None = None,
    callbacks: Callbacks | None = None,
) -> ValidationRecord:
    """Score a recipe's network with trained weights on held-out images.

    The information terms use centroids of up to `STATISTICS_IMAGES` training images; an image folder may lack these,
    and the terms are then unknown. For the shared weights of a study, BatchNorm statistics are first computed from
    those images, as for the scores of the study.

    Args:
        checkpoint: Weights written by `ltmsearch train` or `export`, the shared weights of a study, or a timm
            checkpoint of the plain network, whose merging operators are then untrained.
        dataset: None: `folder` with `data_dir`, else `digits`.
        precision: Number format; with `auto` a stopwatch decides, so scores may differ from call to call.
        batch_size: Images per forward pass. It affects speed and memory, not scores.
        val_images: Number of images to score, balanced over the classes; None: all, or `DIGITS_VALIDATION_IMAGES`.
        split: Images to score, `validation` or `test`; None: validation, or test where there is none.
        layout: Other names of splits, and a class map.

    Raises:
        InputError: If weights or data do not fit the recipe, or an option is invalid.
    """
    callbacks = callbacks or Callbacks()
    size = recipe.img_size if img_size is None else img_size
    checked = _check_options(size, batch_size, precision, val_images, split, layout or DataLayout())
    torch_device = find_device(device)
    network = load_trained(recipe, checkpoint, img_size=size)
    plain = load_trained(_unmerged(recipe), checkpoint, img_size=size).model
    callbacks.phase("reading images", 0)
    data = load_data(
        dataset=dataset or ("folder" if data_dir else "digits"),
        data_dir=data_dir,
        img_size=size,
        **input_config(recipe.backbone, recipe.images),
        val_images=val_images,
        calibration_images=STATISTICS_IMAGES,
        seed=SEED,
        memory_limit_bytes=0,  # every image is used once, and most training images never
        scoring=Scoring(split=cast(HeldOut | None, split), class_names=network.class_names),
        layout=layout,
    )
    data.refuse_other_classes(network.class_names, recipe.num_classes, network.checkpoint)
    try:
        return _measure(recipe, network, plain, data, size, batch_size, torch_device, checked, callbacks)
    except torch.OutOfMemoryError:
        rule = f"a batch must fit in the memory of {torch_device}"
        raise InputError(f"{rule}, but --batch-size {batch_size} does not; use a smaller one") from None


def print_validation(console: Console, record: ValidationRecord) -> None:
    """Print the record as a table, in at most 80 columns, followed by its notes."""
    device = f"{record.device}, {record.precision}"
    if record.threads is not None:
        device += f", {record.threads} thread{'s' if record.threads > 1 else ''}"
    share = f"{record.gflops / record.base_gflops:.0%} of the plain network's {record.base_gflops:.4f}"
    table = make_table("", "", box=None, show_header=False)
    table.add_column(overflow="fold")
    for row in (
        ("top-1", f"{record.top1:.2f} ± {record.top1_se:.2f} %", f"{record.images} images"),
        ("top-5", "-" if record.top5 is None else f"{record.top5:.2f} %", ""),
        ("agreement", f"{record.agreement:.2f} ± {record.agreement_se:.2f} %", "with the same weights unmerged"),
        ("loss", f"{record.loss:.4f}", "cross-entropy, nats"),
        ("I(X̃;X)", _nats(record.mi_x), "features and images, nats"),
        ("I(X̃;Y)", _nats(record.mi_y), "features and labels, nats"),
        ("IB", _nats(record.ib), f"the difference; its upper bound IBB is {_nats(record.ibb)}"),
        ("GFLOPs", f"{record.gflops:.4f}", f"{share}, at {record.img_size} px"),
        *_spread(record),
        ("parameters", f"{record.params / 1e6:.2f} M", ""),
        ("throughput", f"{record.images_per_second:.1f}", f"images/s, batch {record.batch_size}, {device}"),
    ):
        table.add_row(*row)
    print_line(console, f"{record.model}, {record.operator} merging")
    print_line(console, f"weights: {record.checkpoint}")
    print_line(console, f"data: {record.data}")
    console.print(table)
    for note in record.notes:
        print_line(console, f"note: {note}")


def _spread(record: ValidationRecord) -> list[tuple[str, str, str]]:
    """Rows on the spread of costs over images, and on the tokens kept; none where all images cost the same."""
    if record.gflops_sd is None or record.gflops_quantiles is None or record.tokens is None:
        return []
    low, middle, high = (f"{record.gflops_quantiles[f'{share:g}']:.4f}" for share in QUANTILES)
    return [
        ("  spread", f"{record.gflops_sd:.4f}", f"over images; 5 %: {low}, half: {middle}, 95 %: {high}"),
        ("tokens", f"{list(record.tokens.values())[-1]:.1f}", "after the last layer, mean over images"),
    ]


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"  # no minus sign before zero


def _check_options(
    img_size: int, batch_size: int, precision: str, val_images: int | None, split: str | None, layout: DataLayout
) -> Precision:
    for name, value, least in (
        ("img-size", img_size, 32),
        ("batch-size", batch_size, 1),
        ("val-images", val_images, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"--{name} must be {least} or more, but got {value}")
    if img_size > 2048:
        raise InputError(f"--img-size must be 2048 or less, but got {img_size}")
    check_choice("--precision", precision, Precision)
    if split is not None:
        check_choice("--split", split, HeldOut)
    for other, option, given in (
        ("test", "--val-split", layout.val_split),
        ("validation", "--test-split", layout.test_split),
    ):
        if split == other and given is not None:
            raise InputError(f"{option} {given} names images that --split {split} does not score; omit one of them")
    return cast(Precision, precision)


def _measure(
    recipe: Recipe,
    network: TrainedNetwork,
    plain: nn.Module,
    data: ImageData,
    img_size: int,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    callbacks: Callbacks,
) -> ValidationRecord:
    images = next(data.validation_batches(batch_size=batch_size, limit=batch_size))[0]
    full_batch = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]
    runtime = choose_runtime(device, precision, network.model, images[:MEASURED_BATCH], train=False)
    costs = backbone_costs(recipe.backbone, img_size, recipe.schedule.operator, **recipe.network)
    with counted(recipe.backbone, network.model) as counts:
        result, (agreed, agreed_se), notes = _score(recipe, network, plain, data, batch_size, runtime, callbacks)
    terms: dict[str, Any] = {name: getattr(result.ib, name, None) for name in ("mi_x", "mi_y", "ib", "ibb")}
    seconds = step_seconds(runtime, network.model, full_batch, train=False)
    return ValidationRecord(
        model=recipe.model,
        operator=recipe.schedule.operator,
        checkpoint=str(network.checkpoint),
        data=data.title,
        img_size=img_size,
        **{name: getattr(result, name) for name in ("images", "top1", "top1_se", "top5", "loss")},
        **terms,
        agreement=agreed,
        agreement_se=agreed_se,
        **_costs(recipe, costs, counts, images=result.images),
        base_gflops=costs.base / GIGA,
        params=sum(parameter.numel() for parameter in network.model.parameters()),
        images_per_second=batch_size / seconds,
        batch_size=batch_size,
        device=str(runtime.device),
        threads=torch.get_num_threads() if runtime.device.type == "cpu" else None,
        precision=runtime.precision,
        versions=dict(library_versions()),
        notes=[*network.notes, *notes],
    )


def _costs(recipe: Recipe, costs: CostModel, counts: ImageCounts, *, images: int) -> dict[str, Any]:
    """The costs of the validation images, which were the last to pass the network."""
    if not depends_on_images(recipe.schedule):
        return {"gflops": costs.gflops(recipe.schedule)}
    measured = image_costs(costs, recipe.schedule, counts.kept(whole_tokens(costs))[-images:])
    return {
        "gflops": measured.gflops,
        "gflops_sd": measured.gflops_sd,
        "gflops_quantiles": {f"{share:g}": measured.quantile(share) for share in QUANTILES},
        "tokens": dict(zip(costs.layers, measured.tokens, strict=True)),
    }


def _unmerged(recipe: Recipe) -> Recipe:
    """The recipe of the plain network, which has no merging operators."""
    schedule = MergeSchedule.uniform(recipe.schedule.keep_ratios, 1.0, recipe.schedule.operator)
    return recipe.model_copy(update={"schedule": schedule})


def _score(
    recipe: Recipe,
    network: TrainedNetwork,
    plain: nn.Module,
    data: ImageData,
    batch_size: int,
    runtime: Runtime,
    callbacks: Callbacks,
) -> tuple[Score, tuple[float, float], list[str]]:
    """The network's score, its agreement with the plain network, and notes."""
    model, plain, notes = runtime.prepare(network.model), runtime.prepare(plain).eval(), []
    predictions: list[Tensor] = []

    def statistics_batches(phase: str) -> Batches:
        batches = data.calibration_batches(batch_size=batch_size)
        return _with_progress(batches, callbacks, phase, len(data.calibration_keys))

    def with_plain(batches: Batches) -> Batches:
        for images, labels in batches:
            images = runtime.images(images)
            predictions.append(predict(plain, images, runtime))
            yield images, labels

    if network.shared and any(isinstance(module, _BatchNorm) for module in model.modules()):
        if not data.training_size:
            raise InputError(
                f"the shared weights {network.checkpoint} need training images, for BatchNorm statistics, but "
                f"{data.title} has none; use the weights that `ltmsearch export` or `train` wrote"
            )
        recalibrate(model, statistics_batches("BatchNorm statistics"), runtime)
        recalibrate(plain, statistics_batches("BatchNorm statistics of the plain network"), runtime)
        notes.append("shared weights of a study: BatchNorm statistics are recomputed, as for the study's scores")
    model.eval()
    ib, finite = None, True
    if data.training_size:
        ib = IBLoss(
            feature_dim=feature_dim(model),
            num_classes=data.num_classes,
            in_chans=recipe.in_chans,
            beta=recipe.ib_beta,
        )
        finite = fit_ib(ib.to(runtime.device), model, statistics_batches("IB statistics"), runtime)
    else:
        notes.append("without training images the information terms are unknown")
    if finite:
        batches = data.validation_batches(batch_size=batch_size)
        batches = _with_progress(batches, callbacks, "validation", data.validation_size)
        result = score(model, with_plain(batches), runtime, ib=ib)
        finite = (ib is None or result.ib is not None) and math.isfinite(result.loss)
    if not finite:
        hint = "try --precision fp32" if runtime.precision != "fp32" else "its training has diverged"
        raise InputError(f"the network's outputs must be finite, but with {network.checkpoint} they are not; {hint}")
    return result, agreement(result.predictions, torch.cat(predictions).cpu().numpy()), [*notes, *data.notes]


def _with_progress(batches: Batches, callbacks: Callbacks, phase: str, total: int) -> Iterator[tuple[Tensor, Tensor]]:
    callbacks.phase(phase, total)
    done = 0
    for images, labels in batches:
        yield images, labels
        done += len(images)
        callbacks.advance(done)
