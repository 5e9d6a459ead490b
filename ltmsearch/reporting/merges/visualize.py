"""Pictures of `ltmsearch visualize`: the merges of a recipe's network in images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.functional import normalize

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.data.digits import ClutteredDigits
from ltmsearch.data.images import SCALED, read_image
from ltmsearch.data.preparation import IMAGE_MODES
from ltmsearch.data.subsets import quoted
from ltmsearch.data.transforms import evaluation_transform
from ltmsearch.errors import InputError, printable
from ltmsearch.io.files import MAX_NAME_BYTES, refuse_unwritable, write_atomic
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.checkpoints import WEIGHTS as EXPORTED
from ltmsearch.models.checkpoints import load_trained
from ltmsearch.models.merge_traces import LayerMerges, trace_merges
from ltmsearch.reporting.merges import Place, draw_merges, in_colour, merges_page
from ltmsearch.search.checkpoint import WEIGHTS as SHARED
from ltmsearch.training.options import BEST, RECIPE

SEED = 0
"""Seed of random weights and of the built-in digits."""
DIGITS = 3
"""Built-in digits shown without `images`."""


@dataclass(frozen=True, kw_only=True)
class MergePictures:
    """Files drawn, and the weights used."""

    weights: str
    """Origin of the network's weights."""
    notes: tuple[str, ...]
    """Limits of the pictures, a line each."""
    files: tuple[Path, ...]
    """A picture and a page per image."""


def visualize_recipe(
    path: Path,
    images: Sequence[Path] = (),
    *,
    checkpoint: Path | None = None,
    out: Path | None = None,
    img_size: int | None = None,
    place: Place | None = None,
    changes: Mapping[str, Any] | None = None,
    callbacks: Callbacks | None = None,
) -> MergePictures:
    """Draw the merges of a recipe's network in images: a PNG and a page per image.

    Without `images`, built-in digits are shown, for a recipe searched on them. Without `checkpoint`, the weights are
    those beside the recipe (of an export, a training, or the shared weights of a study), or else random ones. Without
    `out`, the folder is `<recipe>-merges` beside the recipe. `place` is a pixel whose merged token is shown in every
    layer; None: a large one. `changes` replace keys of the recipe, such as `mean`.

    Raises:
        InputError: Recipe, weights or images cannot be used or do not match, or nothing merges.
    """
    callbacks = callbacks or Callbacks()
    recipe = load_recipe(path).changed(dict(changes or {}))
    size = recipe.img_size if img_size is None else img_size
    if size < 32:
        raise InputError(f"--img-size must be 32 or more, but got {size}")
    if place is not None and not (min(place) >= 0 and max(place) < size):
        raise InputError(f"--at must be a pixel of the image of {size} x {size} px, but got {place[0]:g},{place[1]:g}")
    get_adapter(recipe.backbone)
    if not recipe.schedule.merging_layers:
        raise InputError(f"{path} must merge in some layer, but its schedule keeps all tokens in all layers")
    folder = out or path.parent / f"{path.stem}-merges"
    refuse_unwritable(folder, "the folder")
    pictures, read_notes = _read(recipe, images, size)
    model, weights, notes = _network(recipe, checkpoint or _weights_beside(path), size)
    subtitle = f"{recipe.model}, {size} px, weights: {printable(weights)}"
    files: list[Path] = []
    callbacks.phase("drawing", len(pictures))
    for done, (name, (title, pixels)) in enumerate(pictures.items(), start=1):
        layers = _look(recipe, model, pixels)
        if not layers:
            ratios = ", ".join(f"{ratio:g}" for ratio in sorted(set(recipe.schedule.keep_ratios.values()) - {1.0}))
            raise InputError(f"{path} merges in no layer at {size} px: on grids this small, {ratios} keep every token")
        sheet, shown = BytesIO(), in_colour(pixels)
        draw_merges(shown, layers, title=title, subtitle=subtitle, place=place).save(sheet, "PNG", optimize=True)
        page = merges_page(shown, layers, title=title, subtitle=subtitle, place=place)
        files += _write(folder, {f"{name}.png": sheet.getvalue(), f"{name}.html": page})
        callbacks.advance(done, title)
    return MergePictures(weights=weights, notes=(*read_notes, *notes), files=tuple(files))


def _read(
    recipe: Recipe, images: Sequence[Path], size: int
) -> tuple[dict[str, tuple[str, np.ndarray]], tuple[str, ...]]:
    """File name → title, and (size, size, channels) uint8 pixels as in validation; notes."""
    config = input_config(recipe.backbone, recipe.images)
    found = recipe.provenance.get("dataset") == "digits"
    if not images and not found:
        raise InputError("--image FILE is required: the recipe was not searched on the built-in digits")
    crop_pct = config["crop_pct"] if images else 1.0  # the built-in digits are not cropped
    mode = IMAGE_MODES[recipe.in_chans]
    prepared = {name: config[name] for name in ("interpolation", "crop_mode", "mean")}
    transform = evaluation_transform(size, crop_pct=crop_pct, **prepared)
    if images:
        sources = [(_output_name(file), printable(file.name), *read_image(file, mode)) for file in images]
    else:
        digits = ClutteredDigits("validation", img_size=size, seed=SEED, length=DIGITS)
        sources = [(f"digit-{i}", f"built-in digit {i}", digits[i][0], False) for i in range(DIGITS)]
    read: dict[str, tuple[str, np.ndarray]] = {}
    for stem, title, image, _ in sources:
        taken = {name.casefold() for name in read}
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(name for name in names if name.casefold() not in taken)
        read[name] = title, transform(image.convert(mode)).permute(1, 2, 0).numpy()
    scaled = [title for _, title, _, scaled in sources if scaled]
    return read, (f"{SCALED}: {quoted(scaled)}",) if scaled else ()


def _output_name(image: Path) -> str:
    """The stem of an image's name, without characters that break a line, and short enough for further endings."""
    name = "".join(c if c.isprintable() else "-" for c in image.stem)
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def _weights_beside(path: Path) -> Path | None:
    folder = path.absolute().parent
    own = [folder / EXPORTED, folder / BEST] if path.name == RECIPE else []
    shared = [folder.parent / SHARED] if folder.name == "recipes" else []
    return next((file for file in own + shared if file.is_file()), None)


def _network(recipe: Recipe, checkpoint: Path | None, size: int) -> tuple[nn.Module, str, tuple[str, ...]]:
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            model = timm.create_model(recipe.model, **{**recipe.model_kwargs(), "img_size": size})
        note = "merges in an untrained network mean little; give trained weights with --checkpoint FILE"
        return model, "random, untrained", (note,)
    network = load_trained(recipe, checkpoint, img_size=size)
    notes = list(network.notes)
    if network.shared and any(isinstance(module, _BatchNorm) for module in network.model.modules()):
        notes.append(
            "shared weights of a study: their BatchNorm statistics are not those of one subnet; "
            "ltmsearch export --weights computes them"
        )
    shown = checkpoint.absolute()
    return network.model, f"{shown.parent.name}/{shown.name}", tuple(notes)


def _look(recipe: Recipe, model: nn.Module, pixels: np.ndarray) -> tuple[LayerMerges, ...]:
    config = input_config(recipe.backbone, recipe.images)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    return trace_merges(recipe.backbone, model, normalize(image, config["mean"], config["std"])[None])[0]


def _write(folder: Path, contents: dict[str, str | bytes]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [write_atomic(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
