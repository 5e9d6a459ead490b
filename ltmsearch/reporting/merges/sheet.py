"""Merges as a picture: all layers of one image, or several images.

Images are (H, W, 3) uint8, the inputs of the network. Text is ASCII: Pillow's own font has few other characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ltmsearch.models.merge_traces import LayerMerges
from ltmsearch.reporting.merges.regions import (
    Place,
    default_place,
    heading,
    region_panel,
    resized,
    token_words,
    weight_panel,
)

LEAST_SIDE, LARGEST_SIDE = 256, 512
"""Pixels of a panel's longer side."""
PATCH = 8
"""Least pixels of a patch in a panel."""
GAP, MARGIN = 8, 20
"""Pixels between panels and around them."""
COLUMNS = 5
"""Most panels in a row, the image included."""
TEXT, SMALL = 15, 13
"""Sizes of letters in pixels."""
BLACK, GREY, WHITE = (0, 0, 0), (90, 90, 90), (255, 255, 255)
HOW = (
    "Above: outlined patches form one merged",
    "token, in their mean colour. A token may",
    "have parts in several places. Dropped",
    "patches are blank.",
    "Below: share of each patch in the token",
    "at the ring.",
)


@dataclass(frozen=True)
class _Column:
    """A heading of two lines, panels of the same size below each other, and text below them."""

    heading: tuple[str, str]
    panels: Sequence[np.ndarray]
    below: Sequence[str] = ()
    ring: Place | None = None
    """(x, y) of a ring in the first panel, in shares of its size."""


def draw_merges(
    image: np.ndarray,
    layers: Sequence[LayerMerges],
    *,
    title: str = "",
    subtitle: str = "",
    place: Place | None = None,
) -> Image.Image:
    """Every merging layer of one image: its regions, and below them the weights of one merged token."""
    place = default_place(layers) if place is None else place
    panel = panel_size(image, layers)
    ring = place[0] / image.shape[1], place[1] / image.shape[0]
    size = f"{image.shape[1]} x {image.shape[0]} px, input of the network"
    columns = [_Column(("image", size), [resized(image, panel)], HOW, ring)]
    for layer in layers:
        token = layer.token_at(*place)
        panels = [region_panel(image, layer, panel), weight_panel(image, layer, token, panel)]
        columns.append(_Column(heading(layer), panels, [token_words(layer, token)], ring))
    across = min(COLUMNS, len(columns), max(2, round(2000 / panel[1])))
    return _sheet([columns[start : start + across] for start in range(0, len(columns), across)], title, subtitle)


def example_sheet(
    images: Sequence[np.ndarray],
    traces: Sequence[Sequence[LayerMerges]],
    *,
    title: str = "",
    side: int = 144,
    most: int = 6,
) -> Image.Image:
    """A row per image: the image, and the regions of its merging layers, at most `most` spread evenly."""
    count, chosen = len(traces[0]), spread_evenly(len(traces[0]), most)
    panel = panel_size(images[0], traces[0], side)
    left_out = "" if len(chosen) == count else f"{len(chosen)} of {count} merging layers"
    columns = [_Column(("", ""), [resized(image, panel) for image in images])]
    for index in chosen:
        layer = traces[0][index]
        panels = [region_panel(image, trace[index], panel) for image, trace in zip(images, traces, strict=True)]
        columns.append(_Column((layer.layer, f"{layer.before} to {layer.after}"), panels))
    return _sheet([columns], ", ".join(filter(None, (title, left_out if count else "no layer merges"))))


def spread_evenly(count: int, most: int) -> list[int]:
    """At most so many places of `count`, the last one included."""
    shown = min(most, count)
    return [round((number + 1) * count / shown) - 1 for number in range(shown)]


def _sheet(rows: Sequence[Sequence[_Column]], title: str, subtitle: str = "") -> Image.Image:
    """Rows of columns; all have as many panels as the highest."""
    height, width = rows[0][0].panels[0].shape[:2]
    most = max(len(column.panels) for column in rows[0])
    head = MARGIN + (TEXT + GAP) * (bool(title) + bool(subtitle)) + GAP
    caption = TEXT + SMALL + GAP
    foot = SMALL + 3 * GAP if any(column.below for column in rows[0]) else 0
    cell = caption + most * (height + GAP) + foot
    sheet = Image.new("RGB", (2 * MARGIN + len(rows[0]) * (width + GAP) - GAP, head + len(rows) * cell + MARGIN), WHITE)
    draw = ImageDraw.Draw(sheet)
    for line, (words, colour) in enumerate(((title, BLACK), (subtitle, GREY))):
        _write(draw, (MARGIN, MARGIN + line * (TEXT + GAP)), words, TEXT, colour, sheet.width - 2 * MARGIN)
    for row, columns in enumerate(rows):
        for place, column in enumerate(columns):
            left, top = MARGIN + place * (width + GAP), head + row * cell
            _write(draw, (left, top), column.heading[0], TEXT, BLACK, width)
            _write(draw, (left, top + TEXT + 3), column.heading[1], SMALL, GREY, width)
            for number, panel in enumerate(column.panels):
                sheet.paste(Image.fromarray(panel), (left, top + caption + number * (height + GAP)))
            if column.ring is not None:
                _ring(draw, left + column.ring[0] * width, top + caption + column.ring[1] * height)
            below = top + caption + len(column.panels) * (height + GAP)
            for line, words in enumerate(column.below):
                _write(draw, (left, below + line * (SMALL + 5)), words, SMALL, GREY, width)
    return sheet


def pixels_seen(images: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> list[np.ndarray]:
    """(H, W, 3) uint8 pixels of each of (B, channels, H, W) images that were normalised by `mean` and `std`."""
    shown = images.transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)
    return [in_colour(pixels) for pixels in (shown * 255).round().clip(0, 255).astype(np.uint8)]


def in_colour(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, channels) pixels that are grey, RGB or RGBA, whose transparency is not drawn."""
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def panel_size(image: np.ndarray, layers: Sequence[LayerMerges], side: int | None = None) -> tuple[int, int]:
    """(h, w) of the panels of an image: `side`, or large enough to see patches."""
    longer = max(image.shape[:2])
    if side is None:
        finest = min((min(layer.token_stride) for layer in layers), default=longer)
        side = round(min(max(LEAST_SIDE, PATCH / finest * longer), LARGEST_SIDE))
    return round(image.shape[0] * side / longer), round(image.shape[1] * side / longer)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for radius, colour, width in ((7, WHITE, 4), (6, BLACK, 2)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], room: int
) -> None:
    """Write a line of text within `room` pixels: smaller, or else cut off."""
    text = text.encode("ascii", "replace").decode()
    font = ImageFont.load_default(size)
    while size > 10 and draw.textlength(text, font) > room:
        size -= 1
        font = ImageFont.load_default(size)
    while text and draw.textlength(text, font) > room:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 4 else ""
    draw.text(at, text, fill=colour, font=font)
