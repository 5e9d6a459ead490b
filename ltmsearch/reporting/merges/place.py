"""The place of an image that is followed through all layers, and what is told of the merged tokens there."""

from collections.abc import Sequence

import numpy as np

from ltmsearch.models.merge_traces import LayerMerges

Place = tuple[float, float]
"""(x, y) in pixels of the image as the network sees it."""


def telling_place(layers: Sequence[LayerMerges]) -> Place:
    """The middle of a patch of the largest merged token of the last layer.

    Of the patches that have most part in it, the one that the most patches go with in all layers. What is alike in
    this is decided by the distance to the middle of the image.

    Args:
        layers: Those that merge, one at least.
    """
    last = layers[-1]
    rows, columns = np.indices(last.image_grid)
    middle = (np.array(last.image_grid) - 1) / 2
    far = np.hypot((rows - middle[0]) / last.image_grid[0], (columns - middle[1]) / last.image_grid[1])
    distance = np.full(len(last.sizes), np.inf)
    np.minimum.at(distance, last.labels, far)  # a token that no patch is in most is no choice
    token = int(np.lexsort((distance, -np.where(np.isfinite(distance), last.sizes.round(2), -1)))[0])
    weights = last.weights(token)
    own = np.argwhere((last.labels == token) & (weights >= 0.9 * weights[last.labels == token].max()))
    places = [
        ((column + 0.5) * last.token_stride[1], (row + 0.5) * last.token_stride[0]) for row, column in own.tolist()
    ]
    company = [sum(float(layer.sizes[layer.token_at(*place)]) for layer in layers) for place in places]
    return places[int(np.lexsort((far[tuple(own.T)], -np.round(company, 2)))[0])]


def heading(layer: LayerMerges) -> tuple[str, str]:
    """The name of a layer, and how many tokens it merged to how many."""
    windows = f" in each of {layer.windows} windows" if layer.windows > 1 else ""
    form = layer.operator if layer.operator == layer.form else f"{layer.operator} {layer.form}"
    return layer.layer, f"{layer.before} to {layer.after} tokens{windows}, {form}"


def token_words(layer: LayerMerges, token: int) -> str:
    """One merged token in words."""
    size, largest = float(layer.sizes[token]), float(layer.weights(token).max())
    patches = f"{size:.3g} patch{'' if f'{size:.3g}' == '1' else 'es'}"
    return f"token {token}: {patches}" + (f", at most {largest:.2f} of one" if largest < 0.995 else "")
