"""The pooled features of a network: what its classifier takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last linear layer of a timm model; the first of two heads where a distillation token has its own."""
    head: Any = model.get_classifier()  # type: ignore[operator]
    classifier = head[0] if isinstance(head, tuple) else head
    if not isinstance(classifier, nn.Linear):
        raise ValueError(f"the classifier must be a linear layer, but got {classifier}")
    return classifier


def feature_dim(model: nn.Module) -> int:
    """D', the width of a timm model's pooled features."""
    return classifier_of(model).in_features


@contextmanager
def pooled_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the pooled features of every forward pass inside the `with` block, at no cost of its own.

    They carry gradients as any other tensor does; who keeps them keeps the pass's memory, so take them out by `pop`.

    Args:
        model: A timm model.

    Yields:
        The (B, D') input of the classifier, of each pass so far that was not taken out.
    """
    seen: list[Tensor] = []
    handle = classifier_of(model).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
