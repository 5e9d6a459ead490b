"""timm's transformer blocks with an optional merge between attention and MLP, shared by ViT, EVA and MobileViT.

Merges accumulate: the next block starts from the merged tokens, and its attention weighs each by the number of input
tokens in it.

Shapes: B images, G groups that share a mask (the pixel positions of a MobileViT patch; 1 in a ViT), K tokens that never
merge (class and register tokens of a ViT), N tokens on the grid, P after the merge, D channels, C channels per head.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from ltmsearch.merging import Merge, MergeOperator, full_precision
from ltmsearch.models.merge_state import MergeState, by_group, state_of, with_state
from ltmsearch.models.merging_layer import MERGING, MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.models.rotary import rotation_at
from ltmsearch.schedules.grid import Grid, tokens


class KeyedAttention(nn.Module):
    """Mixin of timm's attention that can hand out its keys."""

    timm_class: ClassVar[type[nn.Module]]

    def forward(self, x: Tensor, *args: Any, keys: list[Tensor] | None = None, **options: Any) -> Tensor:
        """See timm; appends the (B, heads, N, C) keys to `keys`, if given, as they are before a rotation."""
        # Mostly an identity, `k_norm` is the only module that outputs them.
        module = self if keys is None else Rewired(self, k_norm=recorded(cast(nn.Module, self.k_norm), keys))
        return self.timm_class.forward(module, x, *args, **options)


class KeyedPlainAttention(KeyedAttention, Attention):
    timm_class = Attention


class KeyedEvaAttention(KeyedAttention, EvaAttention):
    timm_class = EvaAttention


class KeyedRotaryAttention(KeyedAttention, AttentionRope):
    timm_class = AttentionRope


class TokenMergingBlock(MergingLayer, nn.Module):
    """Mixin of timm's blocks that can merge their tokens."""

    attn: Any
    norm1: Any
    norm2: Any
    mlp: Any
    drop_path1: Any
    drop_path2: Any
    groups: int
    """G."""
    prefix: int
    """K."""
    number: int
    """Place in the sequence of blocks, from 0."""
    upstream: list[MergeOperator]
    """Operators of this block and of those before it."""
    rope: list[nn.Module]
    """The network's rotary module, in a list so that it is no child of the block; empty without one."""
    last: bool
    """Whether no block follows, which would need the places of merged tokens."""

    @abstractmethod
    def attend(self, x: Tensor, **options: Any) -> Tensor:
        """The first half of timm's block: attention, its norm, its residual; `options` are of the attention."""

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """The second half of timm's block: MLP, its norm, its residual."""

    def merge_between(
        self, plain: Callable[..., Tensor], x: Tensor, attn_mask: Tensor | None, is_causal: bool, **options: Any
    ) -> Tensor:
        """(B·G, K + N, D) tokens to the same by timm's `plain` forward, or to (B·G, K + P, D) by its halves.

        Raises:
            ValueError: If tokens merge here or before, and `x` comes without the state of its merges or with a mask.
        """
        state = state_of(x)
        if state is None:
            if any(operator.keep_ratio < 1 for operator in self.upstream):
                raise ValueError(
                    "a block that merges tokens needs them as the network's own layers return them, since their grid "
                    "and sizes travel with that tensor: leave out operations between blocks, patch dropout "
                    "(`patch_drop_rate`), full backward hooks on blocks and reentrant checkpointing, which return "
                    "other tensors, or build the network without merging."
                )
            return plain(x, attn_mask=attn_mask, is_causal=is_causal, **options)
        operator, target = merge_target(self, state.grid)
        if operator is None and state.sizes is None:
            x = plain(idle_operator(self, x), attn_mask=attn_mask, is_causal=is_causal, **options)
            return with_state(x, state)
        if attn_mask is not None or is_causal:
            raise ValueError(
                "`attn_mask` and `is_causal` cannot be combined with merging: merged tokens have no row or column of "
                "their own in a mask; build the network without merging to use them."
            )
        if state.sizes is not None:
            options["attn_mask"] = self._size_bias(state.sizes, x.dtype)
            if state.places is not None:
                options["rope"] = rotation_at(self.rope[0], state.places, self.number)
        if operator is None:
            return with_state(plain(idle_operator(self, x), **options), state)
        return self._merge(operator, x, options, state, target)

    def _merge(
        self, operator: MergeOperator, x: Tensor, options: dict[str, Any], state: MergeState, target: Grid
    ) -> Tensor:
        keys: list[Tensor] = []
        x = self.attend(x, **options, **({"keys": keys} if operator.needs_keys else {}))
        fixed, rest = x[:, : self.prefix], x[:, self.prefix :]
        before = by_group(rest, self.groups)
        sizes = state.sizes
        if sizes is None:
            sizes = x.new_ones(x.shape[0] // self.groups, tokens(state.grid), dtype=torch.float32)
        found = self._keys(keys[0]) if keys else None
        merge = operator.merge_from(state.change, before, sizes, state.grid, target, found)
        x = merge.tokens.flatten(0, 1)
        x = torch.cat((fixed, x), dim=1) if self.prefix else x
        x = self.transform(x)
        undo = None if state.undo is None else (*state.undo, (before, merge))
        places = None if state.places is None or self.last else mean_places(state.places, sizes, merge)
        if operator.adaptive:
            target = (int(merge.sizes.shape[1]),)
        return with_state(x, MergeState(grid=target, sizes=merge.sizes, undo=undo, places=places, change=merge.change))

    def _keys(self, keys: Tensor) -> Tensor:
        """(B·G, H, K + N, C) to (B, N, H, C), the mean of the groups."""
        keys = keys[:, :, self.prefix :].transpose(1, 2)
        return by_group(keys, self.groups).mean(dim=1) if self.groups > 1 else keys

    def _size_bias(self, sizes: Tensor, dtype: torch.dtype) -> Tensor:
        """Proportional attention (ToMe, https://arxiv.org/abs/2210.09461, equation 1): log s added to the logits.

        (B, N) to (B·G, 1, 1, K + N).
        """
        bias = sizes.log().to(dtype)
        if self.groups > 1:
            bias = bias.repeat_interleave(self.groups, dim=0)
        if self.prefix:
            bias = nn.functional.pad(bias, (self.prefix, 0))
        return bias[:, None, None, :]


def mean_places(places: Tensor, sizes: Tensor, merge: Merge) -> Tensor:
    """The size-weighted mean of the (B, N, 2) places of the tokens in each merged token, (B, P, 2); 0 where none is."""
    with full_precision(places.device):
        total = merge.assignment.collect_few((places * sizes[..., None]).transpose(-2, -1))
    least = torch.finfo(total.dtype).tiny
    return (total / merge.sizes.clamp_min(least)[:, None]).transpose(-2, -1)


class MergingBlock(TokenMergingBlock, Block):
    """timm's pre-norm block, with an optional merge of its tokens."""

    ls1: Any
    ls2: Any

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """See `merge_between`."""
        return self.merge_between(super().forward, x, attn_mask, is_causal)

    def attend(self, x: Tensor, **options: Any) -> Tensor:
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **options)))

    def transform(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class MergingResPostBlock(TokenMergingBlock, ResPostBlock):
    """timm's block with norms after attention and MLP, with an optional merge of its tokens."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """See `merge_between`."""
        return self.merge_between(super().forward, x, attn_mask, is_causal)

    def attend(self, x: Tensor, **options: Any) -> Tensor:
        return x + self.drop_path1(self.norm1(self.attn(x, **options)))

    def transform(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class MergingEvaBlock(TokenMergingBlock, EvaBlock):
    """timm's EVA block, with an optional merge of its tokens."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """See `merge_between`. `rope`: as in timm, of the full grid; merged tokens are rotated by their own places."""
        return self.merge_between(super().forward, x, attn_mask, is_causal, rope=rope)

    def attend(self, x: Tensor, **options: Any) -> Tensor:
        change = self.attn(self.norm1(x), **options)
        return x + self.drop_path1(change if self.gamma_1 is None else self.gamma_1 * change)

    def transform(self, x: Tensor) -> Tensor:
        change = self.mlp(self.norm2(x))
        return x + self.drop_path2(change if self.gamma_2 is None else self.gamma_2 * change)


class MergingEvaPostBlock(TokenMergingBlock, EvaBlockPostNorm):
    """timm's EVA block with norms after attention and MLP, with an optional merge of its tokens."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """See `MergingEvaBlock`."""
        return self.merge_between(super().forward, x, attn_mask, is_causal, rope=rope)

    def attend(self, x: Tensor, **options: Any) -> Tensor:
        return x + self.drop_path1(self.norm1(self.attn(x, **options)))

    def transform(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(self.mlp(x)))


MERGING_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    Block: MergingBlock,
    ResPostBlock: MergingResPostBlock,
    EvaBlock: MergingEvaBlock,
    EvaBlockPostNorm: MergingEvaPostBlock,
    Attention: KeyedPlainAttention,
    EvaAttention: KeyedEvaAttention,
    AttentionRope: KeyedRotaryAttention,
}
"""timm's classes of blocks and of attention → those that merge."""
UNFIT_BLOCKS = {
    "ParallelScalingBlock": "attention and MLP of its blocks run in parallel, with nothing between them",
    "DiffParallelScalingBlock": "attention and MLP of its blocks run in parallel, with nothing between them",
    "ParallelThingsBlock": "its blocks have several attentions in parallel",
    "DiffAttention": "its differential attention has two maps per head, whose keys differ",
}
"""Names of timm's classes of blocks and of attention that cannot merge → the reason."""


def unfit_blocks(blocks: Iterable[nn.Module]) -> str | None:
    """Why a sequence of blocks cannot merge, as the end of a sentence; None if it can."""
    served = {*MERGING_CLASSES, *MERGING_CLASSES.values()}
    for block in blocks:
        for part in (block, getattr(block, "attn", None)):
            if type(part) not in served:
                unknown = f"its blocks must be timm's own, but are {type(block).__qualname__}"
                if part is not block:
                    unknown += f" with {type(part).__module__}.{type(part).__qualname__}"
                return UNFIT_BLOCKS.get(type(part).__name__, unknown)
    return None


def make_merging(blocks: Iterable[Any], *, groups: int = 1, prefix: int = 0, rope: nn.Module | None = None) -> None:
    """Turn a sequence of timm's blocks, with their operators attached, into merging blocks in place.

    They are cast: without a wrapper, parameters keep timm's names. `unfit_blocks` must have nothing against them.
    """
    members: list[Any] = list(blocks)
    upstream: list[MergeOperator] = []
    for number, block in enumerate(members):
        block.__class__, block.attn.__class__ = MERGING_CLASSES[type(block)], MERGING_CLASSES[type(block.attn)]
        upstream = [*upstream, getattr(block, MERGING)] if hasattr(block, MERGING) else upstream
        block.groups, block.prefix, block.number, block.upstream = groups, prefix, number, upstream
        block.rope, block.last = [] if rope is None else [rope], block is members[-1]
