"""Thresholds at which layers keep given shares of their tokens on average, measured with a network's weights.

How alike the keys of a layer are differs from layer to layer: in a DINOv2 ViT-S/14 half of the best cosines are above
0.99 in one block and below 0.8 in the next. A common threshold for all layers is therefore a bad choice.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

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
    supernet: Supernet, shares: Mapping[str, Sequence[float]], batches: Iterable[Tensor], runtime: Runtime
) -> dict[str, list[float]]:
    """Thresholds at which layers of the plain network keep shares of their tokens, on average over images.

    A layer keeps at least half of its tokens: smaller shares have the threshold of that. Where layers before it merge,
    a layer keeps a little more, since what is alike has merged already.

    Args:
        supernet: On its device, with an operator that merges by threshold.
        shares: Layer → shares in (0, 1).
        batches: (B, channels, rows, columns) images.

    Returns:
        Layer → distinct thresholds in (0, 1), from the highest.
    """
    alike: dict[str, list[Tensor]] = {layer: [] for layer in shares}
    tokens: dict[str, int] = dict.fromkeys(shares, 0)

    def look(layer: str, keys: Tensor) -> None:
        with full_precision(keys.device):
            alike[layer].append(similarity(keys.flatten(2)).amax(dim=-1).flatten().cpu())
        tokens[layer] += keys.shape[0] * keys.shape[1]

    hooks = [
        operator.register_forward_pre_hook(lambda _op, args, layer=layer: look(layer, args[4]))
        for layer, operator in attached_operators(supernet.model, supernet.layers).items()
        if layer in shares
    ]
    was_training = supernet.training
    supernet.eval()
    try:
        with supernet.active(MergeSchedule.uniform(supernet.layers, NO_MERGE, supernet.operator)), runtime.autocast():
            for batch in batches:
                supernet(runtime.images(batch))
    finally:
        supernet.train(was_training)
        for hook in hooks:
            hook.remove()
    return {layer: _thresholds(torch.cat(alike[layer]), tokens[layer], shares[layer]) for layer in shares}


def _thresholds(alike: Tensor, tokens: int, shares: Sequence[float]) -> list[float]:
    """From the best cosine of each token that may merge, and the number of all tokens."""
    ranked = alike.sort(descending=True).values
    found = set()
    for share in shares:
        place = min(max(1, round((1 - share) * tokens)), len(ranked)) - 1
        steps = math.floor(float(ranked[place]) / STEP)  # downwards, so that this token still merges
        found.add(round(min(max(steps, 1), round(1 / STEP) - 1) * STEP, 4))
    return sorted(found, reverse=True)
