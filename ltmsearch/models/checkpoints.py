"""A recipe's network with trained weights, all of them: what is validated, exported and looked at."""

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
from ltmsearch.io.json_text import parse_json
from ltmsearch.models import MERGING, load_weights

WEIGHTS = "model.safetensors"
"""File of an exported network's weights, beside its recipe."""
KEY = "ltmsearch"
"""Entry of a weights file's header in which ltmsearch says what the weights are."""


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A network whose every tensor came from a file, but for merging operators that the file does not know."""

    model: nn.Module
    """On the CPU."""
    checkpoint: Path
    """The file."""
    class_names: tuple[str, ...] | None
    """Classes in the order of the outputs; None where the file does not say."""
    shared: bool
    """Whether they are the shared weights of a study, whose BatchNorm statistics are no single subnet's."""
    notes: tuple[str, ...]
    """What a reader of its scores must know, a line each."""


def pack_weights(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A state dict as the content of a safetensors file whose header says what the weights are.

    Args:
        state: Name → tensor, on any device and in any memory layout.
        facts: Plain values, such as `class_names`, which `load_trained` looks at.
    """
    # Not `.contiguous()` alone: it keeps what is laid out channels last.
    tensors = {n: value.detach().cpu().clone(memory_format=torch.contiguous_format) for n, value in state.items()}
    return save(tensors, metadata={KEY: json.dumps(facts)})


def load_trained(recipe: Recipe, checkpoint: Path, *, img_size: int | None = None) -> TrainedNetwork:
    """Build a recipe's network and load its weights.

    Args:
        recipe: The network.
        checkpoint: What `ltmsearch train` or `export` wrote, the shared weights of a study, or a timm checkpoint of the
            plain net: merging operators then start as those put into trained weights do.
        img_size: Side of the images, in pixels; None: the recipe's.

    Raises:
        InputError: If the file cannot be read, or lacks a tensor that is not of such an operator.
    """
    size = recipe.img_size if img_size is None else img_size
    model: nn.Module = timm.create_model(recipe.model, **{**recipe.model_kwargs(), "img_size": size})
    report = load_weights(model, checkpoint)
    fresh = dict(report.initialised)
    notes = []
    ours = {name for name in model.state_dict() if _is_merging(name)}
    if ours and ours <= fresh.keys() and not any(_is_merging(name) for name in report.ignored):
        notes.append(
            f"the checkpoint is of the plain net: its {recipe.schedule.operator} merging operators are untrained"
        )
        fresh = {name: why for name, why in fresh.items() if name not in ours}
    if fresh:
        name, why = next(iter(fresh.items()))
        more = f" nor {len(fresh) - 1} more" if len(fresh) > 1 else ""
        raise InputError(
            f"the checkpoint {checkpoint} must hold every tensor of {recipe.model}, but has no fitting {name} ({why})"
            f"{more}; the weights that were trained with this recipe would do"
        )
    facts = _facts(checkpoint)
    shared, names = "space" in facts, facts.get("class_names")
    unused = sorted({name.partition(f".{MERGING}.")[0] for name in report.ignored if _is_merging(name)})
    if unused and not shared:
        notes.append(f"not used of the checkpoint: merging operators at {len(unused)} layers, such as {unused[0]}")
    return TrainedNetwork(
        model=model,
        checkpoint=checkpoint,
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
        shared=shared,
        notes=tuple(notes),
    )


def _is_merging(name: str) -> bool:
    return f".{MERGING}." in name


def _facts(checkpoint: Path) -> dict[str, Any]:
    """What the header of a file that ltmsearch wrote says of the weights; empty for other files."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            facts = parse_json((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
