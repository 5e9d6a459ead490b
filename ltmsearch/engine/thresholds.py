"""Thresholds at which layers keep given shares of their tokens on average, measured with a network's weights.

How alike the keys of a layer are differs from layer to layer: in a DINOv2 ViT-S/14 half of the best cosines are above
0.99 in one block and below 0.8 in the next. A common threshold for all layers is therefore a bad choice.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltmsearch.engine.runtime import Runtime
from ltmsearch.merging import full_precision
from ltmsearch.merging.matching import similarity
from ltmsearch.models import attached_operators
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import MergeSchedule

NO_MERGE = math.nextafter(1.0, 0.0)
"""A threshold that only equal keys reach."""
STEP = 1e-4
"""Thresholds are multiples of it."""


@torch.no_grad()
def thresholds_at(
    supernet: Supernet, shares: Mapping[str, Sequence[float]], images: Tensor, runtime: Runtime
) -> dict[str, list[float]]:
    """Thresholds at which layers keep shares of their tokens, on average over images.

    The first shares of all layers are measured together, each layer behind the merges of those before it, then the
    second ones, and so on. Where fewer merge before it, a layer keeps less than that share, since more is alike. A
    layer keeps at least half of its tokens: smaller shares have the threshold of that.

    Args:
        supernet: On its device, with an operator that merges by threshold.
        shares: Layer → shares in (0, 1), from the largest.
        images: (B, channels, rows, columns), which pass the network together.

    Returns:
        Layer → distinct thresholds in (0, 1), from the highest. There are none for shares for which earlier merges
        leave no two tokens.
    """
    found: dict[str, set[float]] = {layer: set() for layer in shares}
    place = 0

    def set_threshold(layer: str, operator: Any, sizes: Tensor, keys: Tensor) -> None:
        ratios = shares[layer]
        with full_precision(keys.device):
            operator.keep_ratio = threshold_at(keys.flatten(2), sizes > 0, ratios[min(place, len(ratios) - 1)])
        if place < len(ratios):
            found[layer].add(operator.keep_ratio)

    hooks = [
        operator.register_forward_pre_hook(lambda op, args, layer=layer: set_threshold(layer, op, args[1], args[4]))
        for layer, operator in attached_operators(supernet.model, supernet.layers).items()
        if layer in shares
    ]
    was_training = supernet.training
    supernet.eval()
    try:
        merging = MergeSchedule(keep_ratios=dict.fromkeys(shares, NO_MERGE), operator=supernet.operator)
        for place in range(max(map(len, shares.values()), default=0)):  # noqa: B007 (hooks read it)
            with supernet.active(merging), runtime.autocast():
                supernet(runtime.images(images))
    finally:
        supernet.train(was_training)
        for hook in hooks:
            hook.remove()
    return {layer: sorted(values, reverse=True) for layer, values in found.items()}


def threshold_at(keys: Tensor, exists: Tensor, share: float) -> float:
    """The threshold at which images keep a share of their tokens in all, in (0, 1).

    From (B, N, C) keys, of which those that exist stand first, as in `ltmsearch.merging.threshold.join_alike`.
    """
    pairs = similarity(keys).masked_fill(~exists[:, None, 1::2], -torch.inf)
    ranked = pairs.amax(dim=-1)[exists[:, 0::2]].sort(descending=True).values
    merges = max(1, round((1 - share) * int(exists.sum())))
    least = float(ranked[min(merges, len(ranked)) - 1])
    steps = math.floor(least / STEP) if math.isfinite(least) else 1  # downwards, so that this token still merges
    return round(min(max(steps, 1), round(1 / STEP) - 1) * STEP, 4)
