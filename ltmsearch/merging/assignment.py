"""Which merged token each token goes to, and the two ways of carrying values there and back.

Shapes: B images, G groups that share the assignment, N tokens in, P tokens out, C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.merging.constants import row_starts


class Assignment(Protocol):
    """Carries values from tokens to merged tokens and back."""

    def collect(self, values: Tensor) -> Tensor:
        """Aᵀ · values: (B, G, N, C) to (B, G, P, C)."""
        ...

    def collect_few(self, values: Tensor) -> Tensor:
        """The same for few numbers per token, which lie the other way around: (B, C, N) to (B, C, P)."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """A · values: (B, G, P, C) to (B, G, N, C), a tensor of its own."""
        ...


@dataclass(frozen=True)
class SoftAssignment:
    """Every token is shared out over merged tokens; both ways are matrix products."""

    shares: Tensor
    """(B, N, P), rows sum to 1."""

    def collect(self, values: Tensor) -> Tensor:
        """See `Assignment.collect`."""
        return _by_image(self.shares.mT, values)

    def collect_few(self, values: Tensor) -> Tensor:
        """See `Assignment.collect_few`."""
        # Few rows times A: four times as fast on a CPU as Aᵀ times few columns (5 of them, 100 of 196 tokens).
        return torch.bmm(values, self.shares.to(values.dtype))

    def spread(self, values: Tensor) -> Tensor:
        """See `Assignment.spread`."""
        return _by_image(self.shares, values)


@dataclass(frozen=True)
class HardAssignment:
    """Every token goes whole to one merged token; both ways are by index, and no N×P matrix is built.

    An exported program writes them as products with a one-hot matrix instead: scatters with reduction do not survive
    the way through ONNX to other runtimes.
    """

    position: Tensor
    """(B, N) int64, the merged token of each token."""
    count: int
    """P."""
    gate: Tensor | None = None
    """(B, N) ones that carry the gradient to whatever chose the position; None: nothing wants one."""

    def collect(self, values: Tensor) -> Tensor:
        """See `Assignment.collect`."""
        values = self._gated(values, -2)
        if torch.compiler.is_exporting():
            return _by_image(self._one_hot(values.dtype).mT, values)
        batch, groups, _, channels = values.shape
        # Whole rows at a time: ten times as fast on a CPU as a scatter along dimension 2 (100 of 196 tokens).
        total = values.new_zeros(batch * groups * self.count, channels)
        total.index_add_(0, self._rows(groups), values.reshape(-1, channels))
        return total.view(batch, groups, self.count, channels)

    def collect_few(self, values: Tensor) -> Tensor:
        """See `Assignment.collect_few`."""
        values = self._gated(values, -1)
        if torch.compiler.is_exporting():
            return torch.bmm(values, self._one_hot(values.dtype))
        total = values.new_zeros(*values.shape[:2], self.count)
        return total.scatter_add_(2, self.position[:, None].expand_as(values), values)

    def spread(self, values: Tensor) -> Tensor:
        """See `Assignment.spread`."""
        if torch.compiler.is_exporting():
            out = _by_image(self._one_hot(values.dtype), values)
        else:
            batch, groups, _, channels = values.shape
            rows = values.reshape(-1, channels).index_select(0, self._rows(groups))
            out = rows.view(batch, groups, -1, channels)
        return self._gated(out, -2)

    def _gated(self, values: Tensor, dim: int) -> Tensor:
        """Values times the gate, with their tokens in dimension `dim`."""
        if self.gate is None:
            return values
        gate = self.gate[:, None].to(values.dtype)
        return values * (gate if dim == -1 else gate[..., None])

    def _rows(self, groups: int) -> Tensor:
        """(B·G·N,) the rows of the merged tokens of all images and groups, one below the other."""
        batch = self.position.shape[0]
        if batch * groups == 1:
            return self.position[0]
        return (row_starts(batch, groups, self.count, self.position.device) + self.position[:, None]).flatten()

    def _one_hot(self, dtype: torch.dtype) -> Tensor:
        """(B, N, P)."""
        return F.one_hot(self.position, self.count).to(dtype)


def _by_image(matrix: Tensor, values: Tensor) -> Tensor:
    """Products of each image's (B, M, K) matrix with the (B, G, K, C) values of all its groups."""
    batch, groups, _, channels = values.shape
    matrix = matrix.to(values.dtype)
    if groups > 1:
        matrix = matrix[:, None].expand(-1, groups, -1, -1).flatten(0, 1)
    return torch.bmm(matrix, values.flatten(0, 1)).view(batch, groups, -1, channels)
