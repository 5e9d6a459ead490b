"""Read the state dict of a checkpoint, out of the entries and prefixes that training scripts put around it."""

import argparse
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ltmsearch.errors import InputError, printable, shortened
from ltmsearch.models.conversions import transformers_model

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
PLAIN = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "backbone")
TAUGHT = ("teacher", "student")
"""Of self-distillation, which evaluates the teacher."""
ENTRIES = AVERAGED + PLAIN + TAUGHT
"""Entries of a checkpoint that may be its state dict, the preferred ones first."""
PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "encoder.", "timm_model.")
"""What classes that contain the network put before its names, e.g. `DistributedDataParallel` and the supernet."""
TEACHER = "teacher.backbone."
"""What the training of Meta's DINOv2 puts before the names of the network that it keeps; a student is beside it."""
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch puts before the names inside a module that it wraps, at any level."""
MAX_LEVELS = 3
"""Entries inside each other."""
NAMES_SHOWN = 3
"""Number of names of a kind in a message."""
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder of `save_pretrained` or `ltmsearch export`, the preferred file first."""
SHARDS = ".index.json"
"""What follows the name of weights that are split into several files."""


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The tensors of a checkpoint under the names of the network, or of its model in transformers."""

    tensors: dict[str, Tensor]
    outside: frozenset[str]
    """Names that lack a prefix which was removed from the others: of other parts of a training, such as its loss."""
    unwrapped: str
    """What was around the state dict, as a phrase; empty for a bare one."""


def weights_file(path: Path) -> Path:
    """The weights in a folder that `save_pretrained` or `ltmsearch export` wrote; another path as it is.

    Raises:
        InputError: If the folder has none, or they are split into several files.
    """
    if path.name.endswith(SHARDS):
        raise _split(path)
    if not path.is_dir():
        return path
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
        if (path / f"{name}{SHARDS}").is_file():
            raise _split(path / f"{name}{SHARDS}")
    raise InputError(
        f"the checkpoint must be a file, or a folder with {' or '.join(IN_FOLDER)}, but the folder {path} has neither"
    )


def read_state_dict(path: Path) -> StateDict:
    """Read a safetensors file, or a torch file with weights only.

    Of several state dicts in it, averaged weights (EMA) are preferred.

    Raises:
        InputError: If the file cannot be read, or contains no state dict.
    """
    if not path.is_file():
        raise InputError(f"the checkpoint must be a file, but {path} does not exist")
    if path.stat().st_size == 0:
        raise InputError(f"the checkpoint {path} cannot be read: it is empty")
    try:
        content = _open(path)
    except Exception as error:  # whatever pickle, zip and safetensors raise
        raise InputError(f"the checkpoint {path} cannot be read: {_why_unreadable(path, error)}") from error
    found = _find(content, ())
    if found is None:
        names = list(content)[:NAMES_SHOWN] if isinstance(content, Mapping) else []
        shown = ", ".join(map(str, names)) or "nothing"
        raise InputError(f"the checkpoint {path} must contain a state dict, but contains {shown}")
    return _without_prefixes(*found)


def refuse_not_finite(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise InputError if a tensor in a file has NaN or infinite values; it names the first and counts them."""
    broken = {name: count for name, value in tensors.items() if (count := _not_finite(value))}
    if broken:
        name, count = next(iter(broken.items()))
        more = f" (and {len(broken) - 1} more tensors have some)" if len(broken) > 1 else ""
        raise InputError(
            f"the checkpoint {where} must have finite weights, but {printable(shortened(name, 100))} has {count} NaN "
            f"or infinite values of {tensors[name].numel()}{more}; use weights from before the training diverged"
        )


def listed(names: Iterable[str]) -> str:
    """The first names of many, and the number of the others."""
    all_names = list(names)
    more = f" (and {len(all_names) - NAMES_SHOWN} more)" if len(all_names) > NAMES_SHOWN else ""
    return ", ".join(printable(shortened(name, 160)) for name in all_names[:NAMES_SHOWN]) + more


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class."""
    return shortened((str(error) or type(error).__name__).strip().splitlines()[0], 200)


def _open(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    # About details of a pickle that is refused next. timm's checkpoints contain the arguments of its script.
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _split(index: Path) -> InputError:
    return InputError(
        f"the checkpoint must be one file, but {index} lists several; save the model again as one, in transformers by "
        'save_pretrained(folder, max_shard_size="100GB")'
    )


def _find(content: Any, entries: tuple[str, ...]) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The first state dict in nested entries, and their names."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content), entries
    inside = [name for name in ENTRIES if name in content] if len(entries) < MAX_LEVELS else []
    return next(filter(None, (_find(content[name], (*entries, name)) for name in inside)), None)


def _without_prefixes(state: dict[str, Tensor], entries: tuple[str, ...]) -> StateDict:
    removed = [wrapper for wrapper in WRAPPERS if any(wrapper in name for name in state)]
    for wrapper in removed:
        state = {name.replace(wrapper, ""): value for name, value in state.items()}
    outside: dict[str, Tensor] = {}
    while prefix := _prefix(state):
        removed.append(prefix)
        outside |= {name: value for name, value in state.items() if not name.startswith(prefix)}
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    parts = [f"read from {' → '.join(entries)}"] if entries else []
    parts += [f"without {' '.join(removed)} in its names"] if removed else []
    alone = frozenset(outside.keys() - state.keys())
    return StateDict(tensors=outside | state, outside=alone, unwrapped=", ".join(parts))


def _prefix(names: Collection[str]) -> str | None:
    """What to remove from the start of most names; nothing from those of transformers, which tell the model."""
    if transformers_model(names) is not None:
        return None
    if any(name.startswith(TEACHER) for name in names):
        return TEACHER
    return next((each for each in PREFIXES if 2 * sum(name.startswith(each) for name in names) > len(names)), None)


def _not_finite(value: Tensor) -> int:
    if not (value.is_floating_point() or value.is_complex()):
        return 0
    value = value.float() if value.element_size() == 1 else value  # torch has no `isfinite` for 8-bit formats
    return int(value.numel() - value.isfinite().sum())


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return first_line(error)
    if type(error).__name__ == "UnpicklingError":
        return (
            "it is damaged or contains more than weights, which is refused because unpickling can run code; save only "
            "the state dict, preferably as safetensors"
        )
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    return f"it is damaged or no {kind} file ({type(error).__name__}: {first_line(error)})"
