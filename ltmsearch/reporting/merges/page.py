"""Merges of one image as a page that needs no network: a slider goes through the layers, a tap chooses the token."""

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from ltmsearch.models.merge_traces import LayerMerges
from ltmsearch.reporting.merges.place import Place, heading, telling_place
from ltmsearch.reporting.merges.regions import grey, region_panel
from ltmsearch.reporting.merges.sheet import panel_size

SIDE = 640
"""Pixels of a panel's longer side."""


def merges_page(
    image: np.ndarray, layers: Sequence[LayerMerges], *, title: str, subtitle: str, place: Place | None = None
) -> str:
    """The page as text.

    Args:
        image: (H, W, 3) uint8, as the network sees it.
        layers: Of `trace_merges`; one at least.
        title: Heading, and what the browser's tab says.
        subtitle: The line below.
        place: Where the ring is at first; None: `telling_place`.
    """
    panel = panel_size(image, layers, SIDE)
    data = {
        "size": image.shape[:2],
        "panel": panel,
        "place": telling_place(layers) if place is None else place,
        "image": _picture(image),
        "grey": _picture(grey(image)),
        "layers": [_layer(image, layer, panel) for layer in layers],
    }
    # A script element ends at the first "</", wherever it stands.
    parts = {
        "__TITLE__": html.escape(title),
        "__SUBTITLE__": html.escape(subtitle),
        "__DATA__": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
    }
    page = files("ltmsearch.reporting.merges").joinpath("page.html").read_text(encoding="utf-8")
    pieces = page.split("__DATA__")
    for name in ("__TITLE__", "__SUBTITLE__"):
        pieces = [piece.replace(name, parts[name]) for piece in pieces]
    return parts["__DATA__"].join(pieces)


def _layer(image: np.ndarray, layer: LayerMerges, panel: tuple[int, int]) -> dict[str, Any]:
    """What the page knows of a layer; shares only where some patch is shared out."""
    name, words = heading(layer)
    patch_shares = layer.patch_shares
    whole = bool((patch_shares.max(axis=1) > 1 - 1e-6).all())
    shares = (patch_shares * 255).round().astype(np.uint8)
    return {
        "name": name,
        "words": words,
        "image_grid": layer.image_grid,
        "token_stride": layer.token_stride,
        "after": layer.after,
        "labels": layer.labels.ravel().tolist(),
        "sizes": [float(f"{size:.3g}") for size in layer.sizes],
        "shares": None if whole else base64.b64encode(shares.tobytes()).decode(),
        "regions": _picture(region_panel(image, layer, panel)),
    }


def _picture(pixels: np.ndarray) -> str:
    """A PNG as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
