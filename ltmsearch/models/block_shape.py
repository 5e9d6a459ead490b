"""Multiply-adds of timm's transformer blocks with attention among all tokens, read off their modules."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ltmsearch.models.adapter import NORM_MACS, LayerShape
from ltmsearch.schedules.grid import Grid, tokens


@dataclass(frozen=True, kw_only=True)
class BlockShape(LayerShape):
    """A transformer block: attention among all tokens of a group, then an MLP."""

    token_macs_before: int
    """Multiply-adds per token of the norm and of all of attention but its products."""
    token_macs_after: int
    """Multiply-adds per token of norm and MLP."""
    attn_dim: int
    """Channels of queries, keys and values."""
    prefix: int = 0
    """Tokens that never merge."""

    @classmethod
    def of(cls, block: Any, *, name: str, groups: int = 1, prefix: int = 0, carried: int = 0) -> "BlockShape":
        attn = block.attn
        attn_dim = attn.num_heads * attn.head_dim
        return cls(
            name=name,
            dim=attn.proj.out_features,
            heads=attn.num_heads,
            key_dim=attn.head_dim,
            groups=groups,
            carried=carried,
            token_macs_before=_token_macs(block.norm1) + _attention_macs(attn),
            token_macs_after=_token_macs(block.norm2) + _token_macs(block.mlp),
            attn_dim=attn_dim,
            prefix=prefix,
        )

    def macs_before(self, grid: Grid) -> int:
        """Norm, projections, and the products QKᵀ and AV."""
        n = self.prefix + tokens(grid)
        return self.groups * (n * self.token_macs_before + 2 * n * n * self.attn_dim)

    def macs_after(self, grid: Grid) -> int:
        """Norm and MLP."""
        return self.groups * (self.prefix + tokens(grid)) * self.token_macs_after


def _attention_macs(attn: Any) -> int:
    """Per token, without the products; norms of queries and keys act on every head."""
    heads = {"q_norm": attn.num_heads, "k_norm": getattr(attn, "num_kv_heads", attn.num_heads)}
    return sum(heads.get(name, 1) * _token_macs(child) for name, child in attn.named_children())


def _token_macs(module: nn.Module) -> int:
    """Of a module that treats each token alone: its linear layers and layer norms; RMS norms count zero in fvcore."""
    return sum(_own_macs(part) for part in module.modules())


def _own_macs(part: nn.Module) -> int:
    if isinstance(part, nn.Linear):
        return part.in_features * part.out_features
    if isinstance(part, nn.LayerNorm):
        per_element = NORM_MACS if part.elementwise_affine else NORM_MACS - 1
        return per_element * part.normalized_shape[0]
    return 0
