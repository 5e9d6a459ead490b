"""Export of an ONNX file in int8, compared with the one in float32 on validation images."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ltmsearch.data.layout import DataLayout
from ltmsearch.data.loading import load_data
from ltmsearch.data.sources import Scoring
from ltmsearch.engine.evaluation import Batches, agreement
from ltmsearch.engine.paired import mean_with_error
from ltmsearch.errors import ExportError
from ltmsearch.export.subnets import Subnet
from ltmsearch.io.files import write_atomic
from ltmsearch.models import input_config
from ltmsearch.programs import ExportedFile, open_onnx, quantize_onnx

IMAGES = 1000
"""Largest number of validation images on which the files are compared."""
BATCH = 16
SEED = 0
"""Seed of the choice of those images, and of the built-in digits."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Data on which a file in int8 is compared with the one in float32."""

    dataset: str
    data_dir: Path | None
    layout: DataLayout

    def batches(self, subnet: Subnet) -> Batches:
        """The validation images, at a subnet's image size.

        Raises:
            InputError: If they are missing, or have other classes than the network.
        """
        recipe = subnet.recipe
        data = load_data(
            dataset=self.dataset,
            data_dir=self.data_dir,
            img_size=recipe.img_size,
            **input_config(recipe.backbone, recipe.images),
            val_images=IMAGES,
            calibration_images=1,
            seed=SEED,
            memory_limit_bytes=0,  # every image is used once
            scoring=Scoring(split=None, class_names=subnet.class_names),
            layout=self.layout,
        )
        data.refuse_other_classes(subnet.class_names, recipe.num_classes, subnet.source)
        return data.validation_batches(batch_size=BATCH)


def export_int8(source: Path, path: Path, batches: Batches) -> ExportedFile:
    """Quantise an ONNX file to int8, and compare the answers of both files in onnxruntime on the CPU.

    Args:
        path: File to create or replace.
        batches: Labelled images to compare on.

    Raises:
        ExportError: If the file cannot be quantised or run. No file is left.
    """
    checks: list[tuple[str, float, float]] = []

    def write(draft: Path) -> None:
        products = quantize_onnx(source, draft)
        checks.append(_compared(source, draft, batches, products))

    write_atomic(path, write)
    ((check, agrees, difference),) = checks
    return ExportedFile(file=path, bytes=path.stat().st_size, check=check, agreement=agrees, top1_difference=difference)


def _compared(source: Path, draft: Path, batches: Batches, products: int) -> tuple[str, float, float]:
    """The comparison in words, the agreement in percent, and the difference of top-1 in points."""
    threads = torch.get_num_threads()
    exact, quick = open_onnx(source, threads=threads), open_onnx(draft, threads=threads)
    answers: list[np.ndarray] = []
    for images, labels in batches:
        logits = quick(images)
        if not torch.isfinite(logits).all():
            raise ExportError(f"onnxruntime {version('onnxruntime')} gives logits that are not finite in int8")
        answers.append(np.stack([exact(images).argmax(dim=1).numpy(), logits.argmax(dim=1).numpy(), labels.numpy()]))
    wanted, got, truth = np.concatenate(answers, axis=1)
    share, error = agreement(got, wanted)
    gain = mean_with_error(100 * ((got == truth).astype(float) - (wanted == truth)))
    words = (
        f"onnxruntime {version('onnxruntime')}: {products} products in int8, the same class as in float32 for "
        f"{share:.1f} ± {error:.1f} % of {len(truth)} validation images, top-1 {gain} points"
    )
    return words, share, gain.value
