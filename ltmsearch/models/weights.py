"""Plain timm backbones with their weights: fresh, published, or from a checkpoint."""

import inspect
import logging
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import adapt_input_conv, load_state_dict, resolve_pretrained_cfg
from torch import Tensor, nn

from ltmsearch.errors import InputError, printable, shortened
from ltmsearch.models.adapter import MERGING, get_adapter

SUPERNET = "model."
"""What the names of a study's shared weights begin with."""
NAMES_SHOWN = 3
"""How many names of one kind a message lists."""
OTHER_NETWORK = 0.1
"""Where less than this share of the network's tensors fits, the file is taken for another network's."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What of a checkpoint was not loaded, though it fits."""

    initialised: dict[str, str]
    """Names that stayed as initialised → the shapes, or that the file has none."""
    ignored: tuple[str, ...]
    """Names in the file that the network has no place for: a classifier's, merging operators'."""

    def __str__(self) -> str:
        kept = [f"{name} ({why})" for name, why in self.initialised.items()]
        parts = [f"left as initialised: {_some(kept)}"] if kept else []
        if self.ignored:
            parts.append(f"ignored, having no place in this network: {_some(self.ignored)}")
        return "; ".join(parts)


def create_backbone(
    backbone: str, *, pretrained: bool = False, checkpoint: Path | None = None, **timm_kwargs: Any
) -> nn.Module:
    """timm's model of that name.

    Args:
        backbone: timm name, of a family that an adapter serves.
        pretrained: Load timm's published weights.
        checkpoint: Load weights from this file instead, as `load_weights` does. What of it was not used is logged.
        timm_kwargs: Passed to `timm.create_model`, e.g. `num_classes`, or `pretrained_cfg` for another tag. `img_size`
            may be given for every backbone.

    Raises:
        InputError: For an unknown backbone, or weights that cannot be had or do not fit.
    """
    if not get_adapter(backbone).fixed_size:
        timm_kwargs.pop("img_size", None)  # it takes images of every size, and timm no such argument
    pretrained = pretrained and checkpoint is None
    try:
        if pretrained:
            _check_published(backbone, timm_kwargs)
        model: nn.Module = timm.create_model(backbone, pretrained=pretrained, **timm_kwargs)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise InputError(
            f"the pretrained weights of {backbone} cannot be loaded ({_first_line(error)}); they need network "
            "access to the model hub once; --checkpoint FILE takes a local file"
        ) from error
    if checkpoint is not None:
        report = load_weights(model, checkpoint)
        if report.initialised or report.ignored:
            logging.getLogger("ltmsearch").warning("checkpoint %s: %s", checkpoint, report)
    return model


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Load a timm checkpoint into a timm model, in place.

    It goes through timm's own conversion for the network, so that position embeddings fit another image size and older
    names are understood; a first convolution is adapted to another number of channels. A classifier that is missing
    or has another number of classes stays as initialised, and so do merging operators. Everything else must match.

    Args:
        model: As timm built it.
        path: safetensors, or a torch file (read with weights only): a state dict, or a checkpoint of timm's training
            script, of which the averaged weights (EMA) are preferred; or a study's shared weights.

    Returns:
        What stayed as initialised and what was ignored.

    Raises:
        InputError: If the file cannot be read or does not fit; the model is then unchanged.
    """
    wanted = model.state_dict()
    state = _adapt_first_convolution(model, convert(model, _read(path)), wanted)
    classifiers = _as_tuple(_config(model).get("classifier"))
    spared = {n for n in wanted.keys() | state.keys() if n.rpartition(".")[0] in classifiers or f".{MERGING}." in n}
    misfits = {n: _shapes(state[n], wanted[n]) for n in wanted if n in state and state[n].shape != wanted[n].shape}
    absent = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]  # older files lack these
    extra = [n for n in state if n not in wanted]

    problems = {
        "missing": [n for n in absent if n not in spared],
        "unknown": [n for n in extra if n not in spared],
        "of another shape": [f"{n} ({shapes})" for n, shapes in misfits.items() if n not in spared],
    }
    if any(problems.values()):
        told = "; ".join(f"{kind} {_some(names)}" for kind, names in problems.items() if names)
        parameters = {n for n in wanted if not n.endswith("num_batches_tracked")}
        fitting = len(parameters - misfits.keys() - set(absent))
        if fitting < OTHER_NETWORK * len(parameters):
            told += f"; it looks like another network's: {fitting} of {len(parameters)} tensors fit"
        name = _config(model).get("architecture", type(model).__name__)
        raise InputError(f"the checkpoint {path} does not fit {name}: {told}")

    model.load_state_dict({n: value for n, value in state.items() if n in wanted and n not in misfits}, strict=False)
    initialised = {n: misfits.get(n, "not in the file") for n in wanted if n in misfits or n in absent}
    return LoadReport(initialised=initialised, ignored=tuple(extra))


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"the checkpoint must be a file, but {path} {problem}")
    if path.stat().st_size == 0:
        raise InputError(f"the checkpoint {path} cannot be read: it is empty")
    try:
        with warnings.catch_warnings(action="ignore"):  # of details of a pickle that is refused next
            state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except AttributeError:  # what timm meets where there is no mapping by name
        state = {}
    except Exception as error:  # timm passes on whatever pickle, zip and safetensors raise
        raise InputError(f"the checkpoint {path} cannot be read: {_why_unreadable(path, error)}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        held = ", ".join(map(str, list(state)[:NAMES_SHOWN]))
        raise InputError(f"the checkpoint {path} holds no state dict{f' but {held}' if held else ''}")
    if all(name.startswith(SUPERNET) for name in state):
        return {name.removeprefix(SUPERNET): value for name, value in state.items()}
    return state


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return _first_line(error)
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    if type(error.__cause__).__name__ != "UnpicklingError":
        return f"it is damaged or no {kind} file ({type(error).__name__}: {_first_line(error)})"
    found: list[str] = []
    with suppress(Exception):  # torch lists them for its newer format only
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    doubt, objects = ("", f" ({_some(found)})") if found else (f"is damaged, no {kind} file, or ", "")
    return (
        f"it {doubt}holds more than weights{objects}, which is refused since unpickling can run code; "
        "save the state dict alone, best as safetensors"
    )


def convert(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What timm's build does with published weights of this network (`checkpoint_filter_fn` beside its class)."""
    classes = type(model).__mro__  # that of a merging network is derived from timm's
    beside = (getattr(sys.modules[kind.__module__], "checkpoint_filter_fn", None) for kind in classes)
    function = next(filter(None, beside), None)
    if function is None:
        return state
    # timm sets it for DeiT alone, which has no class of its own; other networks have no such names.
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(function).parameters else {}
    try:
        with warnings.catch_warnings(action="ignore"):  # of how timm interpolates
            converted: dict[str, Tensor] = function(state, model, **options)
    except Exception:  # it assumes the right network; what does not fit is told by name
        return state
    return converted


def _adapt_first_convolution(
    model: nn.Module, state: dict[str, Tensor], wanted: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Fit the first convolution to the network's number of input channels."""
    adapted = dict(state)
    for name in (f"{module}.weight" for module in _as_tuple(_config(model).get("first_conv"))):
        if name in state and name in wanted and state[name].dim() == wanted[name].dim() == 4:
            channels, given = wanted[name].shape[1], state[name].shape[1]
            if channels != given:
                adapted[name] = adapt_input_conv(channels, state[name], base_chans=given)
    return adapted


def _check_published(backbone: str, timm_kwargs: dict[str, Any]) -> None:
    """Fail at once where published weights are not cached and the model hub is out of reach.

    timm alone would ask for each of two files seven times: 46 s without a name server, many minutes behind a firewall.

    Raises:
        ConnectionError: If the hub cannot be reached.
    """
    config = resolve_pretrained_cfg(
        backbone, timm_kwargs.get("pretrained_cfg"), timm_kwargs.get("pretrained_cfg_overlay")
    )
    if config.state_dict or config.file or not config.hf_hub_id:
        return
    repository, _, tag = config.hf_hub_id.partition("@")
    file, revision = config.hf_hub_filename or "model.safetensors", tag or None
    if isinstance(try_to_load_from_cache(repository, file, timm_kwargs.get("cache_dir"), revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
    except HfHubHTTPError:
        return  # it answers: timm tells what it lacks
    except Exception as error:  # whatever its HTTP library raises
        raise ConnectionError(f"the hub cannot be reached: {_first_line(error)}") from error


def _config(model: nn.Module) -> dict[str, Any]:
    return cast(dict[str, Any], model.pretrained_cfg)


def _as_tuple(names: object) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()


def _shapes(given: Tensor, wanted: Tensor) -> str:
    in_file, in_network = ("×".join(map(str, tensor.shape)) or "scalar" for tensor in (given, wanted))
    return f"{in_file} in the file, {in_network} in the network"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" (and {len(listed) - NAMES_SHOWN} more)" if len(listed) > NAMES_SHOWN else ""
    return ", ".join(printable(shortened(name, 100)) for name in listed[:NAMES_SHOWN]) + more


def _first_line(error: BaseException) -> str:
    return shortened((str(error) or type(error).__name__).strip().splitlines()[0], 200)
