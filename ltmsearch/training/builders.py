"""Data, network and teacher of a training."""

from pathlib import Path
from typing import Any

from timm.layers import convert_sync_batchnorm
from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe
from ltmsearch.costs import CostModel
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.data.transforms import Augmentation
from ltmsearch.engine.image_costs import COST_BATCH, COST_IMAGES, depends_on_images, measure_costs
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.models import LoadReport, create_backbone, create_subnet, input_config, load_weights
from ltmsearch.search.checkpoint import WEIGHTS
from ltmsearch.training.options import TrainingOptions


def open_data(recipe: Recipe, options: TrainingOptions, callbacks: Callbacks, img_size: int | None = None) -> ImageData:
    """Open the data, with the recipe's augmentation and all validation images; `img_size`: another size in pixels.

    Raises:
        InputError: If the data are missing or invalid.
    """
    return load_data(
        dataset=options.dataset,
        data_dir=options.data_dir,
        img_size=img_size or recipe.img_size,
        **input_config(recipe.backbone, recipe.images),
        val_images=None,
        calibration_images=1,
        seed=0,  # the built-in digits must not depend on the recipe's seed, or seeds could not be compared
        augmentation=Augmentation(
            scale=recipe.scale,
            ratio=recipe.ratio,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.aa,
            re_prob=recipe.reprob,
            re_mode=recipe.remode,
            re_count=recipe.recount,
        ),
        layout=options.layout,
        callbacks=callbacks,
    )


def open_training_data(recipe: Recipe, options: TrainingOptions, data: ImageData, callbacks: Callbacks) -> ImageData:
    """The data as they are for training: at the teacher's image size, if there is a teacher with another one.

    Raises:
        InputError: If the teacher's images are smaller than the network's.
    """
    size = recipe.teacher_img_size
    if size is None or size == recipe.img_size or not recipe.distill_loss_weight:
        return data
    if size < recipe.img_size:
        raise InputError(
            f"teacher_img_size must be at least img_size {recipe.img_size}, since images are downscaled from it, but "
            f"got {size}"
        )
    return open_data(recipe, options, callbacks, size)


def make_network(
    recipe: Recipe, options: TrainingOptions, device: str, callbacks: Callbacks
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the recipe's subnet on the CPU, with random weights or those of `options.init`.

    Returns:
        The network, and the paths of the classifiers that the weights leave as initialised.

    Raises:
        InputError: If recipe, weights and device do not match.
    """
    kwargs: dict[str, Any] = {} if recipe.drop_path is None else {"drop_path_rate": recipe.drop_path}
    try:
        model = create_subnet(recipe.backbone, **{**recipe.model_kwargs(), **kwargs})
    except InputError as error:
        if not kwargs or "drop_path_rate" not in str(error):
            raise
        raise InputError(f"drop_path: {recipe.backbone} has no stochastic depth in timm; omit this key") from error
    new_classifiers: tuple[str, ...] = ()
    if options.init is not None:
        report = load_weights(model, _weights(options.init))
        new_classifiers = report.new_classifiers
        if str(report):
            callbacks.note(f"{options.init}: {report}")
    if recipe.sync_bn:
        if device == "cpu":
            raise InputError("sync_bn needs GPUs, but the device is cpu; use --no-sync-bn")
        model = convert_sync_batchnorm(model)  # torch's own conversion drops the activations inside timm's norms
    return model, new_classifiers


def _make_plain(recipe: Recipe, weights: Path) -> tuple[nn.Module, LoadReport]:
    """Build the unmerged network for the teacher's image size, with weights of a file or a study; tell how they fit."""
    size = recipe.teacher_img_size or recipe.img_size
    model = create_backbone(recipe.backbone, img_size=size, **recipe.network)
    return model, load_weights(model, _weights(weights))


def make_teacher(recipe: Recipe, options: TrainingOptions) -> nn.Module | None:
    """Build the unmerged network as the teacher, on the CPU and without gradients; None without distillation.

    Where the weights have no registers of the recipe, they are of a network that classifies without: that one teaches.

    Raises:
        InputError: If only one of teacher and distillation weight is given, or the weights do not fit.
    """
    if not recipe.distill_loss_weight:
        if options.teacher is not None:
            raise InputError("--teacher needs --distill-loss-weight above 0, but got 0")
        return None
    weights = options.teacher or options.init
    if weights is None:
        raise InputError("distill_loss_weight above 0 needs a teacher's weights: use --teacher FILE or --init FILE")
    teacher, report = _make_plain(recipe, weights)
    if report.new_registers:
        teacher, report = _make_plain(recipe.changed({"registers": 0, "readout": "timm"}), weights)
    if report.new_classifiers:
        raise InputError(
            f"the teacher must classify the data, but {weights} has no classifier of {recipe.num_classes} classes; use "
            "--teacher FILE with a trained one, or --distill-loss-weight 0"
        )
    return teacher.requires_grad_(False)


def present_gflops(recipe: Recipe, costs: CostModel, model: nn.Module, data: ImageData, runtime: Runtime) -> float:
    """Cost of one image; where it depends on the image, the mean over training images with the present weights."""
    if not depends_on_images(recipe.schedule):
        return costs.gflops(recipe.schedule)
    sample = data.ordered_batches(data.training_sample(COST_IMAGES, seed=recipe.seed), batch_size=COST_BATCH)
    images = (batch for batch, _ in sample)
    return measure_costs(recipe.backbone, model, costs, recipe.schedule, images, runtime).gflops


def _weights(path: Path) -> Path:
    """The shared weights in the run directory of a study; another path as it is."""
    shared = path / WEIGHTS
    return shared if shared.is_file() else path
