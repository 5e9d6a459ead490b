"""Vision transformers with rotary positions by timm's `Eva`: EVA-02, DINOv3, Perception Encoder, RoPE-ViT.

A merged token stands at the mean of its tokens' places, and is rotated accordingly: see `rotary.py`.
"""

from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from ltmsearch.models.adapter import register_family
from ltmsearch.models.columnar import Columnar, MergingTransformer
from ltmsearch.models.merge_state import with_state
from ltmsearch.models.rotary import ROTARY, places_of, rotation_at


class MergingEva(MergingTransformer, Eva):
    """timm's `Eva` with optional merges in its blocks."""

    timm_class = Eva

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        # The first method that receives the patches; the rotation that it returns is one of the full grid.
        state = self.start_state(x)
        x, rotation = Eva._pos_embed(self, x)
        rope = cast(Any, self.rope)
        if rope is not None and self.merges:
            places = places_of(rope, state.grid)
            state = replace(state, places=places)
            if rope.training and rope.aug_active:  # the rotation must be of the places drawn here, not of others
                rotation = self._rotation(places)
        dropped = self.patch_drop is not None and self.training
        return (x if dropped else with_state(x, state)), rotation

    def _rotation(self, places: Tensor) -> Tensor:
        """timm's rotation of the full grid: (1, 1, N, 2·C), or (depth, 1, H, N, 2·C) where blocks differ."""
        rope = cast(nn.Module, self.rope)
        if self.rope_mixed:
            return torch.stack([rotation_at(rope, places, block) for block in range(len(self.blocks))])
        return rotation_at(rope, places, 0)


@register_family
class EVA(Columnar):
    """EVA-02 (https://arxiv.org/abs/2303.11331), DINOv3 (https://arxiv.org/abs/2508.10104), Perception Encoder
    (https://arxiv.org/abs/2504.13181), RoPE-ViT (https://arxiv.org/abs/2403.13298)."""

    family = "eva"
    merging_classes: ClassVar = {Eva: MergingEva}
    for_all_layers = ("rope",)  # which may learn

    def refusal(self, model: Any) -> str | None:
        if model.rope is not None and type(model.rope) not in ROTARY:
            return f"its rotary positions, timm's {type(model.rope).__name__}, are unknown"
        return super().refusal(model)

    def rope(self, model: Any) -> nn.Module | None:
        return cast(nn.Module | None, model.rope)
