"""The whole state of a training in one safetensors file: tensors as they are, everything else as JSON in its header.

Nothing is pickled, so that no file can run code when it is opened.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import parse_json, refuse_special, write_atomic

KEY = "ltmsearch"
"""Name of the entry of the file's header."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values, atomically.

    `load_state` returns them with tensors on the CPU and tuples as lists.

    Raises:
        TypeError: If something in it is neither tensor, dict, list, tuple, text, number, truth value nor None.
    """
    tensors: dict[str, Tensor] = {}
    described = _describe(state, "", tensors)
    write_atomic(path, save(tensors, metadata={KEY: json.dumps(described)}))


def load_state(path: Path) -> dict[str, Any]:
    """Read a state written by `save_state`; raises InputError if the file is damaged or foreign."""
    refuse_special(path)
    try:
        with safe_open(path, framework="pt") as file:
            described = parse_json((file.metadata() or {})[KEY])
            state = _restore(described, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must be the state of an ltmsearch training, but cannot be read ({type(error).__name__}: "
            f"{shortened(str(error), 200)}); move it away to start again"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} must be the state of an ltmsearch training, but has {type(state).__name__}")
    return state


def _describe(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The value in terms of JSON; every tensor in it is added to `tensors` under its path."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # clones: tied tensors are refused by safetensors
        return {"tensor": path}
    if isinstance(value, dict):
        # Pairs, since optimizers number their parameters: JSON would make text of the numbers.
        return {"dict": [[key, _describe(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_describe(item, f"{path}/{place}", tensors) for place, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{path} must be a tensor or a plain value, but is {type(value).__name__}.")


def _restore(described: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(described, list):
        return [_restore(item, tensors) for item in described]
    if isinstance(described, dict):
        if "tensor" in described:
            return tensors[described["tensor"]]
        return {key: _restore(item, tensors) for key, item in described["dict"]}
    return described
