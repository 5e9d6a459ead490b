"""The shared weights on disk: safetensors with the state of the search in its header, so that both change at once."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ltmsearch.errors import InputError
from ltmsearch.files import write_atomic

WEIGHTS = "supernet.safetensors"
SIDECAR = "supernet.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What the weights stand for."""

    class_names: list[str]
    """Classes in the order of the classifier's outputs."""
    version: int
    """How many trials have moved the weights; 0 after the warm-up."""
    space: str
    """`SearchSpace.digest` of the study."""
    trial: int | None
    """Number of the trial that moved the weights last."""
    outcome: dict[str, Any] | None
    """What that trial reported, so that it can be told to the study again after a crash in between."""


def save_checkpoint(folder: Path, weights: dict[str, Tensor], state: CheckpointState) -> None:
    """Write `supernet.safetensors` atomically, then `supernet.json` for people.

    Args:
        folder: The run directory.
        weights: State dict of the supernet.
        state: Goes into the header of the weights file.
    """
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        metadata={"ltmsearch": json.dumps(asdict(state))},
    )
    write_atomic(folder / WEIGHTS, content)
    sidecar = {**asdict(state), "sha256": hashlib.sha256(content).hexdigest()}
    write_atomic(folder / SIDECAR, json.dumps(sidecar, indent=2) + "\n")


def load_checkpoint(folder: Path, *, space: str | None = None) -> tuple[dict[str, Tensor], CheckpointState] | None:
    """Read what `save_checkpoint` wrote; None where there is none yet.

    Args:
        folder: The run directory.
        space: `SearchSpace.digest` of the study that wants to go on; None: of whichever study.

    Raises:
        InputError: If the file is damaged, foreign, or of another space.
    """
    path = folder / WEIGHTS
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        state = CheckpointState(**json.loads(metadata["ltmsearch"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must be the shared weights of an ltmsearch study, but cannot be read "
            f"({type(error).__name__}: {error}); move it away to warm up anew"
        ) from error
    if space is not None and state.space != space:
        raise InputError(f"{path} belongs to another search space ({state.space}, this one is {space})")
    return weights, state
