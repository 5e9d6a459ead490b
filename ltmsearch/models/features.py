"""The pooled features of a network: the input of its classifier."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last linear layer of a timm model; the first of two if a distillation token has a head of its own."""
    head: Any = model.get_classifier()  # type: ignore[operator]
    classifier = head[0] if isinstance(head, tuple) else head
    if not isinstance(classifier, nn.Linear):
        raise ValueError(f"`model` must have a linear classifier, but got {classifier}.")
    return classifier


def feature_dim(model: nn.Module) -> int:
    """D', the width of a timm model's pooled features."""
    return classifier_of(model).in_features


@contextmanager
def pooled_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the (B, D') input of the classifier of every forward pass inside the `with` block.

    Features keep the memory of their pass alive for gradients: remove them from the list by `pop`.
    """
    seen: list[Tensor] = []
    handle = classifier_of(model).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
