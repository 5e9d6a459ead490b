"""Merges of one image as a page that needs no network: a slider selects the layer, a click the merged token."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment

from ltmsearch.models.merge_traces import LayerMerges
from ltmsearch.reporting.merges.encoding import data_url
from ltmsearch.reporting.merges.regions import Place, default_place, grey, heading, region_panel
from ltmsearch.reporting.merges.sheet import panel_size

SIDE = 640
"""Longer side of a panel in pixels."""


def merges_page(
    image: np.ndarray, layers: Sequence[LayerMerges], *, title: str, subtitle: str, place: Place | None = None
) -> str:
    """The page as text."""
    panel = panel_size(image, layers, SIDE)
    data = {
        "size": image.shape[:2],
        "panel": panel,
        "place": default_place(layers) if place is None else place,
        "image": data_url(image),
        "grey": data_url(grey(image)),
        "layers": [_layer(image, layer, panel) for layer in layers],
    }
    environment = Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    page = files("ltmsearch.reporting.merges").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(page).render(title=title, subtitle=subtitle, data=data)


def _layer(image: np.ndarray, layer: LayerMerges, panel: tuple[int, int]) -> dict[str, Any]:
    name, words = heading(layer)
    shares = layer.patch_shares
    largest = shares.max(axis=1)
    exclusive = bool(((largest > 1 - 1e-6) | (largest == 0)).all())  # each patch is in one token or none
    return {
        "name": name,
        "words": words,
        "image_grid": layer.image_grid,
        "token_stride": layer.token_stride,
        "after": layer.after,
        "labels": layer.labels.ravel().tolist(),
        "sizes": [float(f"{size:.3g}") for size in layer.sizes],
        "shares": None if exclusive else base64.b64encode((shares * 255).round().astype(np.uint8).tobytes()).decode(),
        "regions": data_url(region_panel(image, layer, panel)),
    }
