"""Export of an ONNX file in int8, compared with the one in float32 on validation images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ltmsearch.config.recipe import Recipe
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.data.sources import Scoring
from ltmsearch.engine.evaluation import Batches, agreement
from ltmsearch.engine.paired import Difference, mean_with_error
from ltmsearch.errors import ExportError
from ltmsearch.io.files import write_atomic
from ltmsearch.models import input_config
from ltmsearch.programs import ExportedFile, open_onnx, quantize_onnx
from ltmsearch.programs.verify import Program

IMAGES = 1000
"""Largest number of validation images on which the files are compared."""
SEED = 0
"""Seed of the choice of those images, and of the built-in digits."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Data on which a file in int8 is compared with the one in float32."""

    dataset: str
    data_dir: Path | None
    layout: DataLayout

    def open(self, recipe: Recipe, class_names: tuple[str, ...] | None, source: Path) -> ImageData:
        """The validation images, or else the test images, at a recipe's image size.

        Args:
            class_names: Classes of the network's outputs; None if unknown.
            source: File of its weights.

        Raises:
            InputError: If they are missing, or have other classes than the network.
        """
        data = load_data(
            dataset=self.dataset,
            data_dir=self.data_dir,
            img_size=recipe.img_size,
            **input_config(recipe.backbone, recipe.images),
            val_images=IMAGES,
            calibration_images=1,
            seed=SEED,
            memory_limit_bytes=0,  # every image is used once
            scoring=Scoring(split=None, class_names=class_names),
            layout=self.layout,
        )
        data.refuse_other_classes(class_names, recipe.num_classes, source)
        return data


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers of a program in int8 beside those of the one in float32; fields as in `ExportedFile`."""

    images: int
    agreement: float
    agreement_se: float
    top1_difference: float
    top1_difference_se: float | None
    """None: unknown, from one image."""


def export_int8(source: Path, path: Path, data: ImageData, watch: Callable[[int], None]) -> ExportedFile:
    """Quantise an ONNX file to int8, and compare the answers of both files in onnxruntime on the CPU, image by image.

    Scales of activations are those of a batch, so that answers in int8 depend on the other images in it.

    Args:
        path: File to create or replace.
        data: Its validation images are compared.
        watch: Receives the number of images that are done.

    Raises:
        ExportError: If the file cannot be quantised or run. No file is left.
    """
    files: list[ExportedFile] = []

    def write(draft: Path) -> None:
        products = quantize_onnx(source, draft)
        threads = torch.get_num_threads()
        exact, quick = open_onnx(source, threads=threads), open_onnx(draft, threads=threads)
        found = compared(exact, quick, data.validation_batches(batch_size=1), watch)
        se = found.top1_difference_se
        gain = Difference(value=found.top1_difference, se=math.inf if se is None else se)
        words = (
            f"onnxruntime {version('onnxruntime')}: {products} products in int8, the same class as in float32 for "
            f"{found.agreement:.1f} ± {found.agreement_se:.1f} % of {found.images} images one by one, top-1 {gain} "
            f"points; {data.description}"
        )
        files.append(ExportedFile(file=path, bytes=draft.stat().st_size, check=words, **vars(found)))

    write_atomic(path, write)
    return files[0]


def compared(exact: Program, quick: Program, batches: Batches, watch: Callable[[int], None]) -> Comparison:
    """Compare a program in int8 with the one in float32.

    Raises:
        ExportError: If logits are not finite.
    """
    answers: list[np.ndarray] = []
    done = 0
    for images, labels in batches:
        logits = quick(images)
        if not torch.isfinite(logits).all():
            raise ExportError(f"onnxruntime {version('onnxruntime')} gives logits that are not finite in int8")
        answers.append(np.stack([exact(images).argmax(dim=1).numpy(), logits.argmax(dim=1).numpy(), labels.numpy()]))
        watch(done := done + len(labels))
    wanted, got, truth = np.concatenate(answers, axis=1)
    share, error = agreement(got, wanted)
    gain = mean_with_error(100 * ((got == truth).astype(float) - (wanted == truth)))
    return Comparison(
        images=len(truth),
        agreement=share,
        agreement_se=error,
        top1_difference=gain.value,
        top1_difference_se=gain.se if math.isfinite(gain.se) else None,
    )
