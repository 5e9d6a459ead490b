"""Merges as a picture: all layers of one image, or several images.

Text is ASCII: Pillow's own font has few other characters.
"""

from collections.abc import Sequence

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
GAP, MARGIN = 16, 20
"""Pixels between panels and around them."""
COLUMNS = 5
"""Most panels in a row, the image included."""
TEXT, SMALL, LARGE = 15, 13, 20
"""Sizes of letters in pixels."""
BLACK, GREY, WHITE = (0, 0, 0), (90, 90, 90), (255, 255, 255)
HOW = (
    "Above: outlined patches form one merged",
    "token, in their mean colour. A token may",
    "have parts in several places.",
    "Below: share of each patch in the token",
    "at the ring.",
)


def draw_merges(
    image: np.ndarray,
    layers: Sequence[LayerMerges],
    *,
    title: str = "",
    subtitle: str = "",
    place: Place | None = None,
    side: int | None = None,
) -> Image.Image:
    """Every merging layer of one image: its regions, and below them the weights of one merged token.

    Args:
        image: (H, W, 3) uint8, the network's input.
        layers: Merging layers, one or more.
        title: First line.
        subtitle: Second line, smaller.
        place: Each layer shows the merged token at this pixel; None: `default_place`.
        side: Longer side of a panel in pixels; None: large enough to see patches.
    """
    place = default_place(layers) if place is None else place
    panel = panel_size(image, layers, side)
    height, width = panel
    across = min(COLUMNS, len(layers) + 1, max(2, round(2000 / width)))
    rows = -(-(len(layers) + 1) // across)
    head = MARGIN + (LARGE + GAP if title else 0) + (TEXT + GAP if subtitle else 0)
    caption = TEXT + SMALL + 10
    cell = caption + height + 6 + height + SMALL + 6 + GAP
    sheet = Image.new("RGB", (2 * MARGIN + across * (width + GAP) - GAP, head + rows * (cell + GAP)), WHITE)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), title, LARGE, BLACK, sheet.width - 2 * MARGIN)
    _write(draw, (MARGIN, MARGIN + (LARGE + 8 if title else 0)), subtitle, TEXT, GREY, sheet.width - 2 * MARGIN)
    for number in range(len(layers) + 1):
        left, top = MARGIN + number % across * (width + GAP), head + number // across * (cell + GAP)
        layer = layers[number - 1] if number else None
        words = heading(layer) if layer else ("image", f"{image.shape[1]} x {image.shape[0]} px, input of the network")
        _write(draw, (left, top), words[0], TEXT, BLACK, width)
        _write(draw, (left, top + TEXT + 3), words[1], SMALL, GREY, width)
        upper, lower = top + caption, top + caption + height + 6
        if layer is None:
            sheet.paste(Image.fromarray(resized(image, panel)), (left, upper))
            for line, text in enumerate(HOW):
                _write(draw, (left, lower + 4 + line * (SMALL + 5)), text, SMALL, GREY, width)
            _ring(draw, (left, upper), place, image, panel)
            continue
        token = layer.token_at(*place)
        sheet.paste(Image.fromarray(region_panel(image, layer, panel)), (left, upper))
        sheet.paste(Image.fromarray(weight_panel(image, layer, token, panel)), (left, lower))
        _ring(draw, (left, upper), place, image, panel)
        _write(draw, (left, lower + height + 5), token_words(layer, token), SMALL, GREY, width)
    return sheet


def example_sheet(
    images: Sequence[np.ndarray],
    traces: Sequence[Sequence[LayerMerges]],
    *,
    title: str = "",
    side: int = 144,
    most: int = 6,
) -> Image.Image:
    """A row per image: the image, and the regions of its merging layers.

    Args:
        images: (H, W, 3) uint8 each, inputs of the network; one or more.
        traces: Merging layers of each image under one schedule.
        title: First line.
        side: Longer side of a panel in pixels.
        most: Most layers shown, spread evenly and including the last.
    """
    count = len(traces[0])
    shown = min(most, count)
    chosen = [round((number + 1) * count / shown) - 1 for number in range(shown)]
    height, width = panel_size(images[0], traces[0], side)
    left_out = "" if shown == count else f"{shown} of {count} merging layers"
    words = ", ".join(filter(None, (title, left_out if count else "no layer merges")))
    head = MARGIN + (TEXT + 10 if words else 0)
    top = head + 2 * SMALL + 8
    size = (2 * MARGIN + (shown + 1) * (width + 6) - 6, top + len(images) * (height + 6) - 6 + MARGIN)
    sheet = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN - 4), words, TEXT, BLACK, sheet.width - 2 * MARGIN)
    for row, (image, trace) in enumerate(zip(images, traces, strict=True)):
        panels = [resized(image, (height, width))]
        panels += [region_panel(image, trace[index], (height, width)) for index in chosen]
        for column, panel in enumerate(panels):
            corner = (MARGIN + column * (width + 6), top + row * (height + 6))
            sheet.paste(Image.fromarray(panel), corner)
    for column, index in enumerate(chosen, start=1):
        layer, left = traces[0][index], MARGIN + column * (width + 6)
        _write(draw, (left, head), layer.layer, SMALL, BLACK, width)
        _write(draw, (left, head + SMALL + 3), f"{layer.before} to {layer.after}", SMALL, GREY, width)
    return sheet


def pixels_seen(images: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> list[np.ndarray]:
    """(H, W, 3) uint8 pixels of each normalised image.

    Args:
        images: (B, 3, H, W).
        mean, std: Of each channel, on a scale from 0 to 1, by which the images were normalised.
    """
    shown = images.transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)
    return list((shown * 255).round().clip(0, 255).astype(np.uint8))


def panel_size(image: np.ndarray, layers: Sequence[LayerMerges], side: int | None = None) -> tuple[int, int]:
    """(h, w) of the panels of an image: `side`, or large enough to see patches."""
    longer = max(image.shape[:2])
    if side is None:
        finest = min((min(layer.token_stride) for layer in layers), default=longer)
        side = round(min(max(LEAST_SIDE, PATCH / finest * longer), LARGEST_SIDE))
    return round(image.shape[0] * side / longer), round(image.shape[1] * side / longer)


def _ring(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], place: Place, image: np.ndarray, panel: tuple[int, int]
) -> None:
    x = corner[0] + place[0] * panel[1] / image.shape[1]
    y = corner[1] + place[1] * panel[0] / image.shape[0]
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
