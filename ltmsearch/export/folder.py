"""A folder that timm and `load_recipe` reopen: recipe, weights, and timm's description of them."""

import copy
import os
from dataclasses import asdict, dataclass
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
from ltmsearch.programs import ProgramCheck

RECIPE, CONFIG = "recipe.yaml", "config.json"
CHECK_IMAGES = 2
"""Random images on which a reopened net must give the very logits of the net in memory."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One file, and how it was found to be right."""

    file: Path
    """Where it lies."""
    bytes: int
    """Its size."""
    check: str
    """What was seen when it was opened again."""
    difference: float | None = None
    """Largest absolute difference of a logit from the net's; None for files without weights."""
    opset: int | None = None
    """Version of ONNX's operators; None for other files."""
    nodes: int | None = None
    """Operations of a program; None for other files."""

    @classmethod
    def of_program(cls, check: ProgramCheck) -> "ExportedFile":
        """The record of a program."""
        return cls(
            file=check.path,
            bytes=check.bytes,
            check=str(check),
            difference=check.agreement.difference,
            opset=check.opset,
            nodes=check.nodes,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "file": str(self.file)}


def write_recipe(subnet: Subnet, folder: Path) -> ExportedFile:
    """Write `recipe.yaml`, checked by reading it again.

    Raises:
        ExportError: If it reads as another recipe; the file is then not left.
    """

    def write(temporary: Path) -> None:
        subnet.recipe.save(temporary)
        if load_recipe(temporary) != subnet.recipe:
            raise ExportError(f"{folder / RECIPE} must read as the recipe that was written, but does not")

    path = write_atomic(folder / RECIPE, write)
    return ExportedFile(file=path, bytes=path.stat().st_size, check="load_recipe reads the same recipe")


def rebuild(recipe: Recipe, trained: nn.Module) -> nn.Module:
    """The recipe's network as timm builds it, on the CPU, with the weights of a net.

    The net may be a supernet's subnet, which takes images of any size and whose graph is not timm's own.
    """
    net: nn.Module = timm.create_model(recipe.model, **recipe.model_kwargs())
    net.load_state_dict({name: value.detach().cpu() for name, value in trained.state_dict().items()})
    return net.eval()


def write_weights(subnet: Subnet, net: nn.Module, trained: nn.Module, folder: Path) -> list[ExportedFile]:
    """Write `model.safetensors` and `config.json`; the recipe must lie beside them.

    They are written to a draft, opened as `timm.create_model("local-dir:…", pretrained=True)` and through the recipe,
    and moved to their place if both nets give the logits of the net in memory to the bit.

    Args:
        subnet: What is known of the net.
        net: As `rebuild` made it.
        trained: The net in memory.
        folder: Of the recipe.

    Raises:
        ExportError: If a reopened net gives other logits. Nothing is then left.
    """
    about = {} if subnet.class_names is None else {"class_names": list(subnet.class_names)}
    recipe = subnet.recipe
    with TemporaryDirectory(dir=folder, prefix=".draft-") as name:
        draft = Path(name)
        write_atomic(draft / WEIGHTS, pack_weights(net.state_dict(), about))
        write_atomic(
            draft / CONFIG,
            lambda path: write_config(
                path, net, name=recipe.model, img_size=recipe.img_size, inputs=input_config(recipe.backbone),
                class_names=subnet.class_names,
            ),
        )  # fmt: skip
        _check(draft, load_recipe(folder / RECIPE), trained)
        sizes = {file: (draft / file).stat().st_size for file in (WEIGHTS, CONFIG)}
        for file in sizes:
            os.replace(draft / file, folder / file)
    said = "timm's local-dir and the recipe give the same logits to the bit"
    return [
        ExportedFile(file=folder / WEIGHTS, bytes=sizes[WEIGHTS], check=said, difference=0.0),
        ExportedFile(file=folder / CONFIG, bytes=sizes[CONFIG], check="timm opens the net by it"),
    ]


def _check(draft: Path, recipe: Recipe, trained: nn.Module) -> None:
    wanted = copy.deepcopy(trained).cpu().to(memory_format=torch.contiguous_format).eval()
    reopened = {
        "timm.create_model('local-dir:…')": timm.create_model(f"local-dir:{draft}", pretrained=True),
        "load_recipe": timm.create_model(recipe.model, checkpoint_path=str(draft / WEIGHTS), **recipe.model_kwargs()),
    }
    generator = torch.Generator().manual_seed(0)
    channels = cast(int, wanted.in_chans)
    images = torch.randn(CHECK_IMAGES, channels, recipe.img_size, recipe.img_size, generator=generator)
    with torch.inference_mode():
        logits = wanted(images)
        for way, net in reopened.items():
            if not torch.equal(net.eval()(images), logits):
                raise ExportError(f"the net reopened by {way} must give the logits of the net in memory, but does not")
