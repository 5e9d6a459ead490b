"""Checkpoints of the shared weights: safetensors with the state of the search in the header, so both change at once.

The last two are kept: if weights and study ever disagree, one of them matches the study.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import parse_json, refuse_special, write_atomic

WEIGHTS, PREVIOUS = "supernet.safetensors", "supernet.previous.safetensors"
"""Files in a run directory: the shared weights, and the version before."""
SIDECAR = "supernet.json"
_KEY = "ltmsearch"


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """State of the search that belongs to the weights."""

    class_names: list[str]
    """Classes in the order of the classifier's outputs."""
    version: int
    """Number of trials that have updated the weights; 0 after the warm-up."""
    scored: int
    """Number of scored trials at the time of saving, including `trial`."""
    space: str
    """`SearchSpace.digest` of the study."""
    trial: int | None
    """Number of the trial that was scored last."""
    outcome: dict[str, Any] | None
    """Outcome of that trial, so that the study can store it after a crash in between."""


_STATE = TypeAdapter(CheckpointState)


class Checkpoint(NamedTuple):
    """Shared weights read from a file: the supernet's state dict, and its state."""

    weights: dict[str, Tensor]
    state: CheckpointState


def save_checkpoint(folder: Path, weights: Mapping[str, Tensor], state: CheckpointState) -> None:
    """Write `supernet.safetensors` atomically, keep the version before, and write `supernet.json` for people."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    described = {**asdict(state), "sha256": digest(tensors)}
    content = save(tensors, metadata={_KEY: json.dumps(described)})
    write_atomic(folder / WEIGHTS, content, before=folder / PREVIOUS)
    write_atomic(folder / SIDECAR, json.dumps(described, indent=2) + "\n")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values in any order. Tensors must be contiguous and on the CPU."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # an array is a buffer
    return total.hexdigest()


def load_checkpoint(folder: Path, *, space: str | None = None) -> Checkpoint | None:
    """Read the last checkpoint; None if there is none.

    Raises:
        InputError: If the file is damaged, foreign, or of another space.
    """
    path = folder / WEIGHTS
    if not path.exists():  # a crash between two renames, on a file system without links
        return load_previous(folder, space=space)
    return _read(path, space)


def load_previous(folder: Path, *, space: str | None = None) -> Checkpoint | None:
    """Read the checkpoint before the last, as `load_checkpoint` does."""
    path = folder / PREVIOUS
    return _read(path, space) if path.exists() else None


def scored_trials(folder: Path) -> int:
    """Number of scored trials in the last checkpoint; 0 if there is none or it cannot be read."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            known = json.loads((file.metadata() or {})[_KEY])["scored"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0
    return known if isinstance(known, int) else 0


def _read(path: Path, space: str | None) -> Checkpoint:
    refuse_special(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        described = parse_json(metadata[_KEY])
        written = described.pop("sha256")
        state = _STATE.validate_python(vars(CheckpointState(**described)))
        if digest(weights) != written:
            raise ValueError("the weights differ from those that were written")
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must hold the shared weights of a study, but cannot be read "
            f"({type(error).__name__}: {shortened(str(error), 200)}); {_remedy(path)}"
        ) from error
    if space is not None and state.space != space:
        raise InputError(
            f"{path} must belong to the search space of this study ({space}), but belongs to another ({state.space}): "
            "continue with the space that the study began with, or start another study with --study NAME or --out DIR"
        )
    return Checkpoint(weights, state)


def _remedy(path: Path) -> str:
    if path.name == PREVIOUS:
        return "start a new run with --out DIR"
    before = path.with_name(PREVIOUS)
    return f"move it away to {f'continue from {before.name}' if before.exists() else 'repeat the warm-up'}"
