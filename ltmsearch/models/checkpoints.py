"""Load a recipe's network with all of its trained weights, for validation, export and visualization."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import InputError
from ltmsearch.io.files import parse_json
from ltmsearch.models.merging_layer import MERGING
from ltmsearch.models.state_dicts import weights_file
from ltmsearch.models.weights import load_weights

WEIGHTS = "model.safetensors"
"""Name of the weights file of an exported network."""
KEY = "ltmsearch"
"""Entry of a weights file's header with ltmsearch's metadata."""


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A network whose tensors all come from a file, except merging operators that the file lacks."""

    model: nn.Module
    """On the CPU."""
    checkpoint: Path
    class_names: tuple[str, ...] | None
    """Classes in the order of the outputs; None: unknown."""
    shared: bool
    """Whether the weights are a study's, with BatchNorm statistics of no single subnet."""
    notes: tuple[str, ...]
    """Remarks to show with its scores, a line each."""


def pack_weights(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Content of a safetensors file with a state dict and metadata, such as the `class_names` of `load_trained`."""
    # Not `.contiguous()` alone: it keeps tensors in channels-last layout.
    tensors = {n: value.detach().cpu().clone(memory_format=torch.contiguous_format) for n, value in state.items()}
    return save(tensors, metadata={KEY: json.dumps(metadata)})


def load_trained(recipe: Recipe, checkpoint: Path, *, img_size: int | None = None) -> TrainedNetwork:
    """Build a recipe's network and load its weights.

    Args:
        checkpoint: Weights by `ltmsearch train` or `export`, the shared weights of a study, or a timm checkpoint of the
            plain network: merging operators then start with the `content` mask.
        img_size: Side of the images, in pixels; None: the recipe's.

    Raises:
        InputError: If the file cannot be read, or lacks a tensor that is not an operator's.
    """
    size = recipe.img_size if img_size is None else img_size
    model: nn.Module = timm.create_model(recipe.model, **{**recipe.model_kwargs(), "img_size": size})
    checkpoint = weights_file(checkpoint)
    report = load_weights(model, checkpoint)
    missing = dict(report.initialised)
    if report.new_registers:
        missing = {"reg_token": f"{report.new_registers} of its registers are not in the file"} | missing
    notes = [f"the weights were {report.converted}"] if report.converted else []
    operators = {name for name in model.state_dict() if _is_merging(name)}
    if operators and operators <= missing.keys() and not any(_is_merging(name) for name in report.ignored):
        notes.append(
            f"the checkpoint is of the plain net: its {recipe.schedule.operator} merging operators are untrained"
        )
        missing = {name: why for name, why in missing.items() if name not in operators}
    if missing:
        name, why = next(iter(missing.items()))
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"the checkpoint {checkpoint} must contain every tensor of {recipe.model}, but lacks a fitting {name} "
            f"({why}){more}; use weights that were trained with this recipe"
        )
    metadata = _read_metadata(checkpoint)
    shared, names = "space" in metadata, metadata.get("class_names")
    unused = sorted({name.partition(f".{MERGING}.")[0] for name in report.ignored if _is_merging(name)})
    if unused and not shared:
        notes.append(f"unused in the checkpoint: merging operators at {len(unused)} layers, such as {unused[0]}")
    return TrainedNetwork(
        model=model,
        checkpoint=checkpoint,
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
        shared=shared,
        notes=tuple(notes),
    )


def _is_merging(name: str) -> bool:
    return f".{MERGING}." in name


def _read_metadata(checkpoint: Path) -> dict[str, Any]:
    try:
        with safe_open(checkpoint, framework="pt") as file:
            metadata = parse_json((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
