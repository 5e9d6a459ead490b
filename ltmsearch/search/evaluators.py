"""Data, supernet and evaluator of a study, as the driver and each worker open them."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.models import input_config
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.trial import Evaluator

_log = logging.getLogger(__name__)


def open_supernet_and_data(settings: ResolvedSettings, callbacks: Callbacks) -> tuple[Supernet, ImageData]:
    """Read the data, and build the supernet for their classes.

    Raises:
        InputError: If data or weights are not available.
    """
    torch.manual_seed(settings.seed)
    start = time.perf_counter()
    data = load_data(
        dataset=settings.dataset,
        data_dir=Path(settings.data_dir) if settings.data_dir else None,
        img_size=settings.proxy_img_size,
        **input_config(settings.backbone, settings.images),
        val_images=settings.rescore_images,
        search_images=settings.search_images,
        report_images=settings.report_images,
        calibration_images=settings.calibration_images,
        seed=settings.seed,
        layout=settings.layout,
        callbacks=callbacks,
    )
    if not data.search_size or data.report_size < 2:
        what = "train" if not data.search_size else "validation"
        raise InputError(
            f"a search needs images of its own, besides those that train, choose and report, but no class of {what} "
            f"has images to spare: give more {what} images" + " or --test-split" * (what == "validation")
        )
    if settings.num_classes is not None:
        data.refuse_more_classes("num_classes", settings.num_classes)
    _log.info("data read in %.1f s: %s", time.perf_counter() - start, data.description)
    start = time.perf_counter()
    supernet = Supernet(
        settings.backbone,
        operator=settings.operator,
        pretrained=settings.pretrained,
        checkpoint=Path(settings.checkpoint) if settings.checkpoint else None,
        num_classes=settings.num_classes or data.num_classes,
        img_size=settings.img_size,
        **settings.network,
    )
    _log.info("supernet built in %.1f s", time.perf_counter() - start)
    return supernet, data


def make_evaluator(
    supernet: Supernet,
    data: ImageData,
    settings: ResolvedSettings,
    training: Runtime,
    scoring: Runtime,
    sides: Mapping[int, int],
) -> Evaluator:
    """Move the supernet to the device, in place, and evaluate its subnets there; the arguments are its fields."""
    training.prepare(supernet)
    _log.info("supernet on %s; scores in %s", training, scoring.precision)
    return Evaluator(supernet=supernet, data=data, settings=settings, training=training, scoring=scoring, sides=sides)
