"""Keys of a network and of the preparation of its images, as studies and recipes share them, in timm's names."""

import ast
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ltmsearch.config.cli_option import CliOption
from ltmsearch.config.names import Readout
from ltmsearch.data.preparation import IMAGE_MODES, CropMode, ImageOptions, Interpolation
from ltmsearch.errors import shortened
from ltmsearch.io.yaml_models import check

NETWORK = "Network and its images"
"""Panel of the help."""
MAX_REGISTERS = 1024
OWN_KEYS = {
    "num_classes": "use --num-classes",
    "in_chans": "use --in-chans",
    "img_size": "use --img-size",
    "pretrained": "use --pretrained",
    "checkpoint_path": "use --checkpoint",
    "registers": "use --registers",
    "readout": "use --readout",
    **dict.fromkeys(("keep_ratios", "operator", "forms", "mask_start"), "the schedule has it"),
    **dict.fromkeys(("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "embed_layer"), "ltmsearch sets it"),
    "patch_drop_rate": "tokens without some patches have no grid to merge on",
    **dict.fromkeys(("features_only", "out_indices", "feature_cls"), "a search needs the whole network"),
    **dict.fromkeys(
        ("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir", "scriptable", "exportable"),
        "ltmsearch does not pass it on",
    ),
}
"""Arguments of `timm.create_model` that cannot be among `model_kwargs` → the reason, or what to use instead."""


def parse_model_kwargs(value: Any) -> Any:
    """The arguments in a mapping, or in texts `key=value` as timm's scripts read them: literals of Python, else text.

    Sequences become tuples, which is what timm's networks have, so that arguments read from a file equal those given.

    Raises:
        ValueError: For a key that ltmsearch sets itself, and for a value that no file can hold.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        pairs = [_split(each) for each in value]
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError("must have each name once")
    if not isinstance(value, Mapping):
        return value  # pydantic reports the type
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"names must be text, but got {shortened(repr(key))}")
        if key in OWN_KEYS:
            raise ValueError(f"must not have {key}: {OWN_KEYS[key]}")
    return {key: _plain(key, each) for key, each in value.items()}


def _split(text: Any) -> tuple[str, Any]:
    key, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not (equals and key.strip().isidentifier()):
        raise ValueError("must be KEY=VALUE, such as depth=6")
    try:
        return key.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key.strip(), value.strip()


def _plain(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(key, each) for each in value)
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _plain(key, each) for name, each in value.items()}
    raise ValueError(
        f"{key} must be a number, true or false, text, or a list or mapping of these, but is {shortened(repr(value))}"
    )


def _known_channels(value: Any) -> Any:
    try:
        number = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number not in IMAGE_MODES or number != float(value):
        raise ValueError("must be 1 (grey), 3 (RGB) or 4 (RGBA)")
    return number


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _as_sequence(value: Any) -> Any:
    return (value,) if isinstance(value, int | float | str) else value


def _option(**presentation: Any) -> CliOption:
    return CliOption(panel=NETWORK, **presentation)


ModelKwargs = Annotated[
    dict[str, Any],
    BeforeValidator(parse_model_kwargs),
    _option(metavar="KEY=VALUE", default="none"),
    Field(description="Further arguments of the network in timm, such as depth=6 or act_layer=gelu; several at once."),
]
InChans = Annotated[
    int,
    BeforeValidator(_known_channels),
    _option(),
    Field(description="Input channels of the network: images are read as grey (1), RGB (3) or RGBA (4)."),
]
Registers = Annotated[
    int,
    BeforeValidator(_whole),
    _option(),
    Field(ge=0, le=MAX_REGISTERS, description="Learned tokens to add to a ViT beside its own; they never merge."),
]
ReadoutKey = Annotated[
    Readout,
    _option(),
    Field(
        description="Tokens that the classifier reads: as in timm (class token or pooling), or the mean of the "
        "`registers`."
    ),
]
Mean = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...] | None,
    BeforeValidator(_as_sequence),
    _option(metavar="FLOAT...", default="timm's for the network"),
    Field(description="Mean of each channel, or of all, on a scale from 0 to 1; images are normalised."),
]
Std = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...] | None,
    BeforeValidator(_as_sequence),
    _option(metavar="FLOAT...", default="timm's for the network"),
    Field(description="Standard deviation of each channel, or of all, on the same scale."),
]
Resizing = Annotated[
    Interpolation | None,
    _option(default="timm's for the network"),
    Field(description="Filter with which images are resized."),
]
CropPct = Annotated[
    float | None,
    _option(default="timm's for the network"),
    Field(gt=0, le=1, description="Share of the resized image that evaluation sees, by its side."),
]
Cropping = Annotated[
    CropMode | None,
    _option(default="timm's for the network"),
    Field(
        description="What evaluation fits to the square: the short side, cutting off the rest (center), the long side, "
        "with borders (border), or both (squash)."
    ),
]
IMAGE_KEYS = tuple(field.name for field in fields(ImageOptions))
"""Names of the keys that `image_options` reads."""


def check_channels(keys: Any) -> None:
    """Raise ValueError unless the means and standard deviations among some keys are one number or one per channel."""
    for name in ("mean", "std"):
        found = getattr(keys, name)
        if found is not None and len(found) not in (1, keys.in_chans):
            raise ValueError(f"{name} must be one number or {keys.in_chans}, one per channel, but got {len(found)}")


def check_readout(readout: str, registers: int) -> None:
    """Raise ValueError for a readout of registers without any."""
    if readout == "register" and not registers:
        raise ValueError(
            f"readout 'register' needs registers, but got registers={registers}: set registers to 1 or more"
        )


def image_options(keys: Any) -> ImageOptions:
    """The options for images among the keys of a study or a recipe."""
    return ImageOptions(**{name: getattr(keys, name) for name in IMAGE_KEYS})


class NetworkKeys(BaseModel):
    """What a network is besides its name, image size and classes.

    Raises:
        InputError: Through `network_arguments`, for an invalid value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_kwargs: ModelKwargs = {}
    in_chans: InChans = 3
    registers: Registers = 0
    readout: ReadoutKey = "timm"

    @model_validator(mode="after")
    def _check_combinations(self) -> "NetworkKeys":
        check_readout(self.readout, self.registers)
        return self

    def arguments(self) -> dict[str, Any]:
        """Arguments of `create_backbone` and `create_subnet`, without those that have their default."""
        own = self.model_dump(exclude={"model_kwargs"}, exclude_defaults=True)
        return {**self.model_kwargs, **own}


NETWORK_KEYS = tuple(NetworkKeys.model_fields)
"""Names of these keys."""


def network_keys(keys: Any) -> dict[str, Any]:
    """The keys of a network among those of a study or of a latency target."""
    return {name: getattr(keys, name) for name in NETWORK_KEYS}


def network_arguments(where: str, **keys: Any) -> dict[str, Any]:
    """Arguments of `create_backbone` from values of a command line or a program, `where` in error messages.

    Raises:
        InputError: For an invalid value.
    """
    return check(NetworkKeys, {name: value for name, value in keys.items() if value}, where).arguments()
