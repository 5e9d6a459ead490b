"""Which merged token each token goes to, and the two ways of carrying values there and back.

Shapes: B images, G groups that share the assignment, N tokens in, P tokens out, C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Assignment(Protocol):
    """Carries values from tokens to merged tokens and back."""

    def collect(self, values: Tensor) -> Tensor:
        """Aᵀ · values: (B, G, N, C) to (B, G, P, C)."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """A · values: (B, G, P, C) to (B, G, N, C)."""
        ...


@dataclass(frozen=True)
class SoftAssignment:
    """Every token is shared out over merged tokens; both ways are matrix products."""

    shares: Tensor
    """(B, N, P), rows sum to 1."""

    def collect(self, values: Tensor) -> Tensor:
        """See `Assignment.collect`."""
        return self._for(values).transpose(2, 3) @ values

    def spread(self, values: Tensor) -> Tensor:
        """See `Assignment.spread`."""
        return self._for(values) @ values

    def _for(self, values: Tensor) -> Tensor:
        return self.shares.to(values.dtype)[:, None].expand(-1, values.shape[1], -1, -1)


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
        if self.gate is not None:
            values = values * self.gate[:, None, :, None].to(values.dtype)
        if torch.compiler.is_exporting():
            return self._one_hot(values).transpose(2, 3) @ values
        batch, groups, _, channels = values.shape
        # Whole rows at a time: ten times as fast on a CPU as a scatter along dimension 2 (100 of 196 tokens).
        total = values.new_zeros(batch * groups * self.count, channels)
        return total.index_add(0, self._rows(groups), values.reshape(-1, channels)).view(
            batch, groups, self.count, channels
        )

    def spread(self, values: Tensor) -> Tensor:
        """See `Assignment.spread`."""
        batch, groups, _, channels = values.shape
        if torch.compiler.is_exporting():
            out = self._one_hot(values) @ values
        else:
            rows = values.reshape(-1, channels).index_select(0, self._rows(groups))
            out = rows.view(batch, groups, -1, channels)
        return out if self.gate is None else out * self.gate[:, None, :, None].to(out.dtype)

    def _rows(self, groups: int) -> Tensor:
        """(B·G·N,) the rows of the merged tokens of all images and groups, one below the other."""
        batch = len(self.position)
        start = torch.arange(batch * groups, device=self.position.device).view(batch, groups, 1) * self.count
        return (start + self.position[:, None]).flatten()

    def _one_hot(self, values: Tensor) -> Tensor:
        one_hot = F.one_hot(self.position, self.count).to(values.dtype)
        return one_hot[:, None].expand(-1, values.shape[1], -1, -1)
