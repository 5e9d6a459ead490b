"""Numbers of tokens that the layers of a network keep in each image, counted in forward passes.

For operators that merge by threshold, whose counts depend on the image.

Shapes: B images of a batch, I images in all, L layers.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ltmsearch.merging import Merge
from ltmsearch.models.adapter import get_adapter
from ltmsearch.models.merging_layer import attached_operators


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Counts of the images that passed a network inside `counted`."""

    layers: tuple[str, ...]
    """The network's layers, in the order of execution."""
    batches: list[dict[str, Tensor]] = field(default_factory=list)
    """Per batch: layer → (B,) tokens after its merge; layers that do not merge are not among them."""

    def kept(self, whole: int) -> np.ndarray:
        """(I, L) int64 tokens after each layer, of `whole` before the first; without those that never merge."""
        rows = []
        for batch in self.batches:
            counts = [torch.full_like(next(iter(batch.values())), whole)]
            for layer in self.layers:
                counts.append(batch.get(layer, counts[-1]))
            rows.append(torch.stack(counts[1:], dim=1).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, len(self.layers)), dtype=np.int64)


@contextmanager
def counted(backbone: str, model: nn.Module) -> Iterator[ImageCounts]:
    """Count the tokens of the images that pass a network inside the `with` block."""
    layers = get_adapter(backbone).layers(model)
    counts = ImageCounts(layers=layers)

    def record(layer: str, merge: Merge) -> None:
        if not counts.batches or layer in counts.batches[-1]:  # a layer runs once per batch
            counts.batches.append({})
        counts.batches[-1][layer] = (merge.sizes > 0).sum(dim=1)

    hooks = [
        operator.register_forward_hook(lambda _op, _args, merge, layer=layer: record(layer, merge))
        for layer, operator in attached_operators(model, layers).items()
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def count_tokens(backbone: str, model: nn.Module, batches: Iterable[Tensor]) -> ImageCounts:
    """Count the tokens of the images of some (B, channels, height, width) batches, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        with counted(backbone, model) as counts:
            for images in batches:
                model(images)
    finally:
        model.train(was_training)
    return counts
