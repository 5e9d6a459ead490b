"""A folder with recipe, weights and timm's configuration, from which timm and `load_recipe` rebuild the network."""

import copy
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import timm
import torch
from torch import nn

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.errors import ExportError
from ltmsearch.export.subnets import Subnet
from ltmsearch.io.files import write_atomic
from ltmsearch.models import input_config, write_config
from ltmsearch.models.checkpoints import WEIGHTS, pack_weights
from ltmsearch.programs import ExportedFile

RECIPE, CONFIG = "recipe.yaml", "config.json"
CHECK_IMAGES = 2
"""Random images on which a rebuilt network must give exactly the logits of the network in memory."""


def write_recipe(recipe: Recipe, folder: Path) -> ExportedFile:
    """Write `recipe.yaml`, and check it by reading it back.

    Raises:
        ExportError: If the file reads as another recipe; the file is then not left.
    """

    def write(draft: Path) -> None:
        recipe.save(draft)
        if load_recipe(draft) != recipe:
            raise ExportError(f"{folder / RECIPE} must read as the recipe that was written, but does not")

    path = write_atomic(folder / RECIPE, write)
    return ExportedFile(file=path, bytes=path.stat().st_size, check="load_recipe reads the same recipe")


def write_weights(subnet: Subnet, folder: Path) -> list[ExportedFile]:
    """Write `model.safetensors` and `config.json` beside the recipe.

    Drafts of both are opened by `timm.create_model("local-dir:…", pretrained=True)` and through the recipe, and replace
    older files if both networks give exactly the logits of the network in memory.

    Raises:
        ExportError: If a rebuilt network gives other logits. No file is then left.
    """
    recipe, names = subnet.recipe, subnet.class_names
    facts = {} if names is None else {"class_names": list(names)}
    with TemporaryDirectory(dir=folder, prefix=".draft-") as name:
        draft = Path(name)
        write_atomic(draft / WEIGHTS, pack_weights(subnet.network.state_dict(), facts))
        config: dict[str, Any] = {
            "name": recipe.model,
            "img_size": recipe.img_size,
            "inputs": input_config(recipe.backbone, recipe.images),
        }
        write_atomic(draft / CONFIG, partial(write_config, model=subnet.network, class_names=names, **config))
        assert subnet.trained is not None
        _check_logits(draft, recipe, subnet.trained)
        sizes = {file: (draft / file).stat().st_size for file in (WEIGHTS, CONFIG)}
        for file in sizes:
            os.replace(draft / file, folder / file)
    check = "timm's local-dir and the recipe give exactly the same logits"
    return [
        ExportedFile(file=folder / WEIGHTS, bytes=sizes[WEIGHTS], check=check, difference=0.0),
        ExportedFile(file=folder / CONFIG, bytes=sizes[CONFIG], check="timm builds the network from it"),
    ]


def _check_logits(draft: Path, recipe: Recipe, trained: nn.Module) -> None:
    reference = copy.deepcopy(trained).cpu().to(memory_format=torch.contiguous_format).eval()
    rebuilt = {
        "timm.create_model('local-dir:…')": timm.create_model(f"local-dir:{draft}", pretrained=True),
        "load_recipe": timm.create_model(recipe.model, checkpoint_path=str(draft / WEIGHTS), **recipe.model_kwargs()),
    }
    channels = cast(int, reference.in_chans)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECK_IMAGES, channels, recipe.img_size, recipe.img_size, generator=generator)
    with torch.inference_mode():
        logits = reference(images)
        for method, net in rebuilt.items():
            if not torch.equal(net.eval()(images), logits):
                raise ExportError(f"the network from {method} must give the logits of the one in memory, but does not")
