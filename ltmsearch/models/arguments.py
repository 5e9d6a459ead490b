"""Arguments that users pass on to timm's networks: what timm raises for wrong ones, in one line."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from timm.models import is_model, model_entrypoint, split_model_name_tag

from ltmsearch.config.network import OWN_KEYS
from ltmsearch.errors import InputError, did_you_mean, shortened
from ltmsearch.models.state_dicts import first_line

_UNKNOWN = re.compile(r"(?:(\w+)\.)?\w+\(\) got an unexpected keyword argument '(\w+)'")
_REFUSALS = (TypeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def users_arguments(timm_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of `timm.create_model` that ltmsearch does not set itself."""
    return {name: value for name, value in timm_kwargs.items() if name not in OWN_KEYS}


@contextmanager
def refusing_arguments(backbone: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> Iterator[None]:
    """Turn what timm raises while it builds or runs a network into an `InputError`, if there are a user's arguments.

    Raises:
        InputError: Naming the argument that timm does not know, and the nearest that it does, or timm's own reason.
    """
    try:
        yield
    except _REFUSALS as error:
        if not arguments or (pretrained and isinstance(error, RuntimeError) and "state_dict" not in str(error)):
            raise
        unknown = _UNKNOWN.search(str(error)) if isinstance(error, TypeError) else None
        if unknown:
            nearest = did_you_mean(unknown[2], _known_arguments(backbone, unknown[1]))
            rule = f"`model_kwargs` must be arguments of timm's {backbone}"
            raise InputError(f"{rule}, but it has no {unknown[2]}{nearest}") from error
        given = shortened(", ".join(f"{name}={value!r}" for name, value in arguments.items()), 200)
        # The text of a KeyError is the missing key alone.
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"timm cannot build or run {backbone} with {given}: {reason}") from error


def _known_arguments(backbone: str, kind: str | None) -> list[str]:
    """Arguments of the class that refused one, which timm defines in the module of the network."""
    name, _ = split_model_name_tag(backbone)
    if not is_model(name):
        return []
    module = sys.modules[model_entrypoint(name).__module__]
    parameters = inspect.signature(getattr(module, kind or "", dict)).parameters
    return [each for each in parameters if each not in ("self", *OWN_KEYS)]
