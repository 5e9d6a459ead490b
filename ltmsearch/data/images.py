"""One image as Pillow reads it: formats, grey of 16 and 32 bits, and shapes that memory can hold."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.functional import center_crop

from ltmsearch.errors import InputError

UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, TypeError, ArithmeticError, AssertionError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's decoders and timm's readers raise for a damaged image: each its own."""

NOT_PICTURES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"})
"""Formats that Pillow identifies but does not decode, and one that it has Ghostscript run as a program."""

SCALED = "grey of 16 or 32 bits scaled to 8"
"""Note where images had more than 8 bits of grey."""

LONGEST = 32
"""Long sides of an image, in short sides; what exceeds it is cut off around the centre."""
# timm enlarges the short side to that of evaluation and crops afterwards: a line of 1 x 20,000 pixels would take 5 GB.


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that this build of it decodes."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_PICTURES)


@cache
def suffixes() -> frozenset[str]:
    """Endings of files in these formats, in lower case with the dot; many-picture JPEGs (MPO) are read as JPEG."""
    known = {*formats(), "MPO"}
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


@contextmanager
def pillow_quiet() -> Iterator[None]:
    """Silence Pillow's warnings: they do not name the file, and an image that raises one is still decoded."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def decode(file: Any, mode: str = "RGB") -> tuple[Image.Image, bool]:
    """Decode an open file, of an animation the first picture: see `prepare`."""
    with Image.open(file, formats=formats()) as image:
        return prepare(image, mode)


def prepare(image: Image.Image, mode: str = "RGB") -> tuple[Image.Image, bool]:
    """The image in 8 bits, and whether its grey values had to be scaled to them.

    As in timm, the orientation of EXIF is ignored, and transparency is dropped unless `mode` has it.

    Returns:
        The image in `mode` or, if it is grey, in "L", with a long side of at most `LONGEST` short ones.
    """
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:
        image = center_crop(image, [min(image.height, longest), min(image.width, longest)])
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_in_8_bits(np.asarray(image), image.mode)), True
    return image.convert("L" if image.mode == "L" else mode), False  # grey takes a third of the memory


def _in_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values scaled to uint8, where Pillow would clip them.

    16 bits have a fixed scale, 0 to 65535. 32 bits have none: it is the smallest of 0 to 1 (floats), 0 to 255 and
    0 to 65535 with all values, or else the image's own range.
    """
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    tops = (65535,) if mode.startswith("I;16") else (255, 65535) if mode == "I" else (1, 255, 65535)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0.0, float(top)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    return np.rint((numbers - low) / ((high - low) or 1) * 255).astype(np.uint8)


@pillow_quiet()
def read_image(path: Path, mode: str = "RGB") -> tuple[Image.Image, bool]:
    """Read one image file: see `prepare`.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return decode(file, mode)
    except UnidentifiedImageError:
        reason = "it is empty" if path.stat().st_size == 0 else "Pillow does not recognise its format"
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"the image {path} cannot be read: {reason}; use an undamaged image file, such as JPEG or PNG")
