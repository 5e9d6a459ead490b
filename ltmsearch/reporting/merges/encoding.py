"""Pictures as PNG files, and as the data URLs with which a page needs no other file."""

import base64
import io

import numpy as np
from PIL import Image

FEW_COLOURS = 128
"""Colours of small pictures; so few make a file of a fifth the size."""


def png(image: Image.Image, *, few_colours: bool = False) -> bytes:
    """Content of a PNG file, on request with `FEW_COLOURS`."""
    content = io.BytesIO()
    shown = image.quantize(FEW_COLOURS, Image.Quantize.FASTOCTREE) if few_colours else image
    shown.save(content, "PNG", optimize=not few_colours)
    return content.getvalue()


def data_url(pixels: np.ndarray, *, few_colours: bool = False) -> str:
    """PNG of (H, W, 3) uint8 pixels as a data URL."""
    content = png(Image.fromarray(pixels), few_colours=few_colours)
    return "data:image/png;base64," + base64.b64encode(content).decode()
