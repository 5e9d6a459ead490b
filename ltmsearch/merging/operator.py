"""What a merging operator is, and the registry of them.

Shapes: B images, G groups of tokens that share one mask (the pixel positions of a MobileViT patch; otherwise 1),
N tokens in on an h×w grid, P tokens out on a p×q grid, D channels.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ltmsearch.errors import unknown_name
from ltmsearch.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The outcome of one merge."""

    tokens: Tensor
    """(B, G, P, D) merged tokens X̃."""
    sizes: Tensor
    """(B, P) float32: how many input tokens stand behind each; the sum over P is that of the sizes before."""
    spread: Callable[[Tensor], Tensor]
    """Takes a (B, G, P, D) value of the merged tokens back to the (B, G, N, D) tokens they came from."""

    def unmerge(self, before: Tensor, after: Tensor) -> Tensor:
        """Residual unmerge `Z + A (X̃_out − X̃_in)`: the identity when the merged path changed nothing.

        Args:
            before: (B, G, N, D) the tokens Z that were merged.
            after: (B, G, P, D) what the merged path made of `tokens`.
        """
        return before + self.spread(after - self.tokens)


class MergeOperator(nn.Module):
    """Merges the N tokens of a grid into the P tokens of a smaller one.

    An operator has at most a few weights of its own; none depends on N, P or the image size, so that one set serves
    every keep ratio at every resolution. A target equal to the grid never reaches an operator.
    """

    name: ClassVar[str]
    needs_keys: ClassVar[bool] = False
    """Whether `forward` wants the attention keys of the layer."""

    keep_ratio: float = 1.0
    """The keep ratio the layer runs at. Set by `Supernet.active` and when a subnet is built, by nobody else."""

    @abstractmethod
    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge.

        Args:
            tokens: (B, G, N, D).
            sizes: (B, N) float32, how many input tokens stand behind each token; ones before the first merge.
            grid: (h, w) with h·w = N.
            target: (p, q), smaller than `grid`.
            keys: (B, N, C) attention keys, averaged over heads and groups, where `needs_keys`.
        """

    def no_weight_decay(self) -> set[str]:
        """Names of the operator's weights that weight decay would pull away from their meaning."""
        return set()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A checkpoint of the plain backbone holds nothing for the operators: they keep what they have, and the
        # loader has nothing to complain about. One that holds something must hold all.
        if any(name.startswith(prefix) for name in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    @staticmethod
    @abstractmethod
    def merge_macs(n: int, p: int, *, dim: int, key_dim: int, groups: int) -> int:
        """Multiply-adds of one merge of one image, as fvcore counts them; `key_dim` is the width of the keys."""

    @staticmethod
    @abstractmethod
    def unmerge_macs(n: int, p: int, *, dim: int, groups: int) -> int:
        """Multiply-adds of one `Merge.unmerge` of one image."""


OPERATORS: dict[str, type[MergeOperator]] = {}
"""Operators by name."""


def register_operator(operator: type[MergeOperator]) -> type[MergeOperator]:
    """Class decorator: make an operator known under its `name`."""
    OPERATORS[operator.name] = operator
    return operator


def get_operator(name: str) -> type[MergeOperator]:
    """The operator class of that name.

    Raises:
        InputError: If there is none, with the nearest name.
    """
    if name not in OPERATORS:
        raise unknown_name("operator", name, OPERATORS)
    return OPERATORS[name]
