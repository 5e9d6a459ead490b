"""Build plain timm backbones, and load published weights or a checkpoint."""

import inspect
import logging
import sys
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import adapt_input_conv, resolve_pretrained_cfg
from torch import Tensor, nn

from ltmsearch.config.names import Readout
from ltmsearch.errors import InputError
from ltmsearch.models.adapter import get_adapter, unfit_size
from ltmsearch.models.arguments import refusing_arguments, users_arguments
from ltmsearch.models.conversions import MARK, rename
from ltmsearch.models.merging_layer import MERGING
from ltmsearch.models.registers import (
    added_registers,
    check_registers,
    create_with_registers,
    lacks_registers,
    replaced_pooling,
    unread_classifiers,
    widened,
    without_classifiers,
    without_registers,
)
from ltmsearch.models.state_dicts import first_line, listed, read_state_dict, refuse_not_finite, weights_file

OTHER_NETWORK = 0.1
"""If less than this share of the tensors fits, the file is considered another network's."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """How a checkpoint that fits was loaded, and the tensors that were not."""

    initialised: dict[str, str]
    """Name of a tensor that remained as initialised → the reason."""
    ignored: tuple[str, ...]
    """Names in the file without a place in the network: of a classifier, a merging operator, a loss."""
    unwrapped: str = ""
    """What was around the state dict in the file, e.g. "read from model_ema"."""
    converted: str = ""
    """Which names it had, e.g. "converted from Hugging Face transformers' Dinov2Model"; empty: timm's."""
    new_classifiers: tuple[str, ...] = ()
    """Paths of the classifiers whose weights remained as initialised."""
    new_registers: int = 0
    """Number of registers that remained as initialised."""

    def __str__(self) -> str:
        kept = [f"{name} ({why})" for name, why in self.initialised.items()]
        parts = [part for part in (self.unwrapped, self.converted) if part]
        parts += [f"left as initialised: {listed(kept)}"] if kept else []
        parts += [_new_registers(self.new_registers)] if self.new_registers else []
        if self.ignored:
            parts.append(f"ignored, without a place in this network: {listed(self.ignored)}")
        return "; ".join(parts)


def _new_registers(number: int) -> str:
    return f"{number} new register{'s' if number > 1 else ''} left as initialised"


def create_backbone(
    backbone: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    registers: int = 0,
    readout: Readout = "timm",
    **timm_kwargs: Any,
) -> nn.Module:
    """Build a supported timm model, with published weights or those of a file: see `load_weights`.

    Unused tensors and converted names are logged. `img_size` is accepted for every backbone.

    Args:
        registers: Learned tokens to add to a ViT beside its own, by timm's `reg_tokens` or `num_reg_tokens`.
        readout: What the classifier reads: `timm`'s class token or pooling, or `register`, the mean of these tokens.

    Raises:
        InputError: For an unknown backbone, arguments that timm refuses, registers that a network cannot have, or
            weights that are not available or do not fit.
    """
    options = {"registers": registers, "readout": readout, **timm_kwargs}
    return build_backbone(backbone, pretrained=pretrained, checkpoint=checkpoint, **options)[0]


def build_backbone(
    backbone: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    registers: int = 0,
    readout: Readout = "timm",
    **timm_kwargs: Any,
) -> tuple[nn.Module, tuple[str, ...]]:
    """`create_backbone`, and the paths of the classifiers that the given weights leave as initialised."""
    check_registers(registers, readout)
    if not get_adapter(backbone).fixed_size:
        timm_kwargs.pop("img_size", None)  # it accepts images of every size, and timm no such argument
    pretrained = pretrained and checkpoint is None
    try:
        if pretrained:
            _check_published(backbone, timm_kwargs)
        with refusing_arguments(backbone, users_arguments(timm_kwargs), pretrained=pretrained):
            if registers:
                read = readout == "register"
                model = create_with_registers(backbone, registers, read=read, pretrained=pretrained, **timm_kwargs)
            else:
                model = timm.create_model(backbone, pretrained=pretrained, **timm_kwargs)
    except AssertionError as error:
        if timm_kwargs.get("img_size") is None:
            raise
        raise unfit_size(timm_kwargs["img_size"], error) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise InputError(
            f"the pretrained weights of {backbone} cannot be loaded ({first_line(error)}); connect to the model hub "
            "once, or give a local file by --checkpoint FILE"
        ) from error
    if not hasattr(model, "pretrained_cfg"):
        raise InputError(
            f"`backbone` must be a network that is built by timm's build_model_with_cfg, but {backbone} has no "
            "pretrained_cfg"
        )
    if checkpoint is not None:
        report = load_weights(model, checkpoint)
        if report.initialised or report.ignored or report.converted or report.new_registers:
            logging.getLogger("ltmsearch").warning("checkpoint %s: %s", checkpoint, report)
        return model, report.new_classifiers
    if pretrained and registers:
        logging.getLogger("ltmsearch").warning("published weights of %s: %s", backbone, _new_registers(registers))
    kept = readout == "timm" and _config(model).get("num_classes") == getattr(model, "num_classes", None)
    if not pretrained or kept:
        return model, ()
    # timm drops the published classifier of another number of classes; feature nets have none.
    held = dict(model.named_parameters())
    return model, tuple(n for n in _as_tuple(_config(model).get("classifier")) if f"{n}.weight" in held)


def load_weights(model: nn.Module, path: Path | str) -> LoadReport:
    """Load a checkpoint into a timm model in place, and report unused tensors.

    Names of transformers' ViT, DeiT, DINOv2, DINOv3 ViT, Swin and Swin V2, and of Meta's DINOv2, are renamed to timm's.
    timm's conversion for the network fits position embeddings to another image size and renames old tensors; the first
    convolution is adapted to another number of channels. A classifier that is missing or has another number of classes
    remains as initialised; so do merging operators, and registers that were added, with a classifier that reads them.
    Everything else must match.

    Args:
        path: safetensors, or a torch file (read with weights only): a state dict, alone or in an entry such as
            `state_dict` or `model_state_dict`, its names as they are or behind prefixes such as `module.` or
            `backbone.`. Averaged weights (EMA) are preferred. Or a folder with one such file, as transformers'
            `save_pretrained` writes it.

    Raises:
        InputError: If the file cannot be read or does not fit, or weights are not finite; the model is then unchanged.
    """
    path = weights_file(Path(path))
    wanted = model.state_dict()
    found = read_state_dict(path)
    renamed = rename(found.tensors, wanted)
    converted, new_registers = _converted(model, renamed.tensors)
    if renamed.marked:
        converted.pop(MARK, None)
    state = _adapt_first_convolution(model, converted, wanted)
    # timm renames too, without a copy of the values; or changes them, under the same name.
    by_value = {id(renamed.tensors[n]): source for n, source in renamed.sources.items()}
    sources = {n: by_value.get(id(value), renamed.sources.get(n, n)) for n, value in state.items()}

    classifiers = _as_tuple(_config(model).get("classifier"))
    optional = {n for n in wanted.keys() | state.keys() if n.rpartition(".")[0] in classifiers or f".{MERGING}." in n}
    optional |= found.outside | renamed.unplaced | replaced_pooling(model, state)
    misshaped = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    misfits = {n: _shapes(state[n], wanted[n], "" if sources[n] == n else f" as {sources[n]}") for n in misshaped}
    absent = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]  # older files lack these
    extra = [n for n in state if n not in wanted]

    problems = {
        "missing": [n for n in absent if n not in optional],
        "unknown": [sources[n] for n in extra if n not in optional],
        "of another shape": [f"{n} ({shapes})" for n, shapes in misfits.items() if n not in optional],
    }
    if any(problems.values()):
        fitting = wanted.keys() - misfits.keys() - set(absent)
        raise _does_not_fit(model, path, renamed.origin, problems, fitting)

    loaded = {n: value for n, value in state.items() if n in wanted and n not in misfits}
    refuse_not_finite({sources[n]: value for n, value in loaded.items()}, path)
    model.load_state_dict(loaded, strict=False)
    unread = dict.fromkeys(unread_classifiers(model) if new_registers else (), "it reads the new registers")
    reasons = misfits | {n: unread.get(n.rpartition(".")[0], "not in the file") for n in absent}
    return LoadReport(
        initialised={n: reasons[n] for n in wanted if n in reasons},
        ignored=tuple(sources[n] for n in extra),
        unwrapped=found.unwrapped,
        converted=renamed.origin,
        new_classifiers=tuple(n for n in classifiers if f"{n}.weight" in reasons),
        new_registers=new_registers,
    )


def _does_not_fit(
    model: nn.Module, path: Path, origin: str, problems: Mapping[str, list[str]], fitting: Set[str]
) -> InputError:
    details = "; ".join(f"{kind} {listed(names)}" for kind, names in problems.items() if names)
    parameters = {n for n in model.state_dict() if not n.endswith("num_batches_tracked")}
    fits = len(parameters & fitting)
    if fits < OTHER_NETWORK * len(parameters):
        details += f"; it seems to be of another network: {fits} of {len(parameters)} tensors fit"
    name = _config(model).get("architecture", type(model).__name__)
    converted = f" ({origin})" if origin else ""
    return InputError(f"the checkpoint {path}{converted} does not fit {name}: {details}")


def _converted(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """A state dict by timm's names, and the number of added registers that it lacked, which are the network's own.

    Then it has no classifiers that read registers either.
    """
    registers = added_registers(model)
    if registers is not None:
        plain = convert_state(model, dict(state), seen_as=without_registers(model))
        if lacks_registers(model, plain):
            return without_classifiers(widened(model, plain), unread_classifiers(model)), registers.added
    return convert_state(model, dict(state)), 0


def convert_state(model: nn.Module, state: dict[str, Tensor], seen_as: Any = None) -> dict[str, Tensor]:
    """Apply timm's conversion of published weights for this network (`checkpoint_filter_fn` beside its class).

    `seen_as` stands for the network in it.
    """
    classes = type(model).__mro__  # a merging network's class is derived from timm's
    functions = (getattr(sys.modules[kind.__module__], "checkpoint_filter_fn", None) for kind in classes)
    function = next(filter(None, functions), None)
    if function is None:
        return state
    # timm sets it only for DeiT, which has no class of its own; other networks have no such names.
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(function).parameters else {}
    try:
        with warnings.catch_warnings(action="ignore"):  # about timm's interpolation
            converted: dict[str, Tensor] = function(state, model if seen_as is None else seen_as, **options)
    except Exception:  # it assumes the right network; misfits are reported by name
        return state
    return converted


def _adapt_first_convolution(
    model: nn.Module, state: dict[str, Tensor], wanted: dict[str, Tensor]
) -> dict[str, Tensor]:
    adapted = dict(state)
    for name in (f"{module}.weight" for module in _as_tuple(_config(model).get("first_conv"))):
        if name in state and name in wanted and state[name].dim() == wanted[name].dim() == 4:
            channels, given = wanted[name].shape[1], state[name].shape[1]
            if channels != given:
                adapted[name] = adapt_input_conv(channels, state[name], base_chans=given)
    return adapted


def _check_published(backbone: str, timm_kwargs: dict[str, Any]) -> None:
    """Raise a ConnectionError at once if published weights are not cached and the model hub cannot be reached.

    timm requests each of two files seven times: 46 s without a name server, many minutes behind a firewall.
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
        return  # it answers: timm reports what is missing
    except Exception as error:  # whatever its HTTP library raises
        raise ConnectionError(f"the hub cannot be reached: {first_line(error)}") from error


def _config(model: nn.Module) -> dict[str, Any]:
    return cast(dict[str, Any], model.pretrained_cfg)


def _as_tuple(names: object) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else ()


def _shapes(given: Tensor, wanted: Tensor, known_as: str) -> str:
    in_file, in_network = ("×".join(map(str, tensor.shape)) or "scalar" for tensor in (given, wanted))
    return f"{in_file} in the file{known_as}, {in_network} in the network"
