"""The pictures of `ltmsearch visualize`: a recipe's network looks at images, and what it merges is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, count
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.functional import normalize

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.data.digits import ClutteredDigits
from ltmsearch.data.subsets import read_image
from ltmsearch.data.transforms import evaluation_transform
from ltmsearch.errors import InputError
from ltmsearch.io.files import write_atomic
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.checkpoints import WEIGHTS as EXPORTED
from ltmsearch.models.checkpoints import load_trained
from ltmsearch.models.merge_traces import LayerMerges, trace_merges
from ltmsearch.reporting.merges import Place, draw_merges, merges_page
from ltmsearch.search.checkpoint import WEIGHTS as SHARED
from ltmsearch.training.options import BEST, RECIPE

SEED = 0
"""Of a fresh network's weights, and of the built-in digits."""
DIGITS = 3
"""Built-in digits that are shown where no image is given."""


@dataclass(frozen=True, kw_only=True)
class MergePictures:
    """What was drawn, and with which weights."""

    weights: str
    """Where the network's weights come from."""
    notes: tuple[str, ...]
    """What one who looks at the pictures must know, a line each."""
    files: tuple[Path, ...]
    """For each image a picture and a page."""


def visualize_recipe(
    path: Path,
    images: Sequence[Path] = (),
    *,
    checkpoint: Path | None = None,
    out: Path | None = None,
    img_size: int | None = None,
    place: Place | None = None,
    callbacks: Callbacks | None = None,
) -> MergePictures:
    """Draw what a recipe's network merges in some images: for each a PNG and a page.

    Args:
        path: The recipe.
        images: Image files, seen as in validation; none: some of the built-in digits, for a recipe that was found on
            them.
        checkpoint: Weights of the recipe's network; None: those beside the recipe (of an export, a training, or the
            shared ones of a study), or else fresh ones.
        out: Folder to write to, made when missing; None: `<recipe>-merges` beside the recipe.
        img_size: Side of the images, in pixels; None: the recipe's.
        place: Follow the merged token that the patch here goes to, in every layer; None: a large one.
        callbacks: Receives progress.

    Raises:
        InputError: If recipe, weights or images cannot be used or do not go together, or if nothing merges.
    """
    callbacks = callbacks or Callbacks()
    recipe = load_recipe(path)
    size = recipe.img_size if img_size is None else img_size
    if size < 32:
        raise InputError(f"--img-size must be 32 or more, but got {size}")
    if place is not None and not (min(place) >= 0 and max(place) < size):
        raise InputError(f"--at must lie in the image of {size} x {size} px, but got {place[0]:g},{place[1]:g}")
    get_adapter(recipe.backbone)
    if not recipe.schedule.merging_layers:
        raise InputError(f"{path} must merge somewhere to be drawn, but its schedule keeps all tokens in all layers")
    pictures = _read(recipe, images, size)
    model, weights, notes = _network(recipe, checkpoint or _weights_beside(path), size)
    folder = out or path.parent / f"{path.stem}-merges"
    subtitle = f"{recipe.model}, {size} px, weights: {weights}"
    files: list[Path] = []
    callbacks.phase("drawing", len(pictures))
    for done, (name, (title, pixels)) in enumerate(pictures.items(), start=1):
        layers = _look(recipe, model, pixels)
        if not layers:
            ratios = ", ".join(f"{ratio:g}" for ratio in sorted(set(recipe.schedule.keep_ratios.values()) - {1.0}))
            raise InputError(f"{path} merges nowhere at {size} px: on grids so small, {ratios} keep every token")
        sheet = BytesIO()
        draw_merges(pixels, layers, title=title, subtitle=subtitle, place=place).save(sheet, "PNG", optimize=True)
        page = merges_page(pixels, layers, title=title, subtitle=subtitle, place=place)
        files += _write(folder, {f"{name}.png": sheet.getvalue(), f"{name}.html": page})
        callbacks.advance(done, title)
    return MergePictures(weights=weights, notes=notes, files=tuple(files))


def _read(recipe: Recipe, images: Sequence[Path], size: int) -> dict[str, tuple[str, np.ndarray]]:
    """Name of the files → title, and the (size, size, 3) uint8 pixels that validation would see."""
    config = input_config(recipe.backbone)
    found = recipe.provenance.get("dataset") == "digits"
    if not images and not found:
        raise InputError("--image FILE must be given, one or more: the recipe was not found on the built-in digits")
    crop_pct = config["crop_pct"] if images else 1.0  # the built-in digits are seen whole
    transform = evaluation_transform(size, interpolation=config["interpolation"], crop_pct=crop_pct)
    if images:
        sources = [(file.stem, file.name, read_image(file)) for file in images]
    else:
        digits = ClutteredDigits("validation", img_size=size, seed=SEED, length=DIGITS)
        sources = [(f"digit-{i}", f"built-in digit {i}", digits[i][0]) for i in range(DIGITS)]
    read: dict[str, tuple[str, np.ndarray]] = {}
    for stem, title, image in sources:
        taken = {name.casefold() for name in read}
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(name for name in names if name.casefold() not in taken)
        read[name] = title, transform(image.convert("RGB")).permute(1, 2, 0).numpy()
    return read


def _weights_beside(path: Path) -> Path | None:
    """Weights that were written together with a recipe: of an export, a training, or a study."""
    folder = path.absolute().parent
    own = [folder / EXPORTED, folder / BEST] if path.name == RECIPE else []
    shared = [folder.parent / SHARED] if folder.name == "recipes" else []
    return next((file for file in own + shared if file.is_file()), None)


def _network(recipe: Recipe, checkpoint: Path | None, size: int) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network, where its weights come from, and what to know of them."""
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            model = timm.create_model(recipe.model, **{**recipe.model_kwargs(), "img_size": size})
        note = "merges by content mean little in an untrained network; --checkpoint FILE takes trained weights"
        return model, "fresh, untrained", (note,)
    network = load_trained(recipe, checkpoint, img_size=size)
    notes = list(network.notes)
    if network.shared and any(isinstance(module, _BatchNorm) for module in network.model.modules()):
        notes.append(
            "shared weights of a study: BatchNorm statistics are no single subnet's; "
            "what ltmsearch export --weights writes has its own"
        )
    shown = checkpoint.absolute()
    return network.model, f"{shown.parent.name}/{shown.name}", tuple(notes)


def _look(recipe: Recipe, model: nn.Module, pixels: np.ndarray) -> tuple[LayerMerges, ...]:
    config = input_config(recipe.backbone)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    return trace_merges(recipe.backbone, model, normalize(image, config["mean"], config["std"])[None])[0]


def _write(folder: Path, contents: dict[str, str | bytes]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [write_atomic(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
