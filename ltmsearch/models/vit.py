"""Vision transformers by timm's `VisionTransformer`: ViT, DeiT, DINOv2, CLIP, SigLIP, hybrids and their kin."""

from typing import ClassVar

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ltmsearch.models.adapter import register_family
from ltmsearch.models.columnar import Columnar, MergingTransformer
from ltmsearch.models.merge_state import with_state


class MergingVisionTransformer(MergingTransformer, VisionTransformer):
    """timm's `VisionTransformer` with optional merges in its blocks."""

    timm_class = VisionTransformer

    def _pos_embed(self, x: Tensor) -> Tensor:
        # The first method that receives the patches.
        return with_state(self.timm_class._pos_embed(self, x), self.start_state(x))


class MergingVisionTransformerDistilled(MergingVisionTransformer, VisionTransformerDistilled):
    """timm's `VisionTransformerDistilled` with optional merges in its blocks."""

    timm_class = VisionTransformerDistilled


@register_family
class ViT(Columnar):
    """ViT (https://arxiv.org/abs/2010.11929) and everything else that timm builds as a `VisionTransformer`."""

    family = "vit"
    merging_classes: ClassVar = {
        VisionTransformer: MergingVisionTransformer,
        VisionTransformerDistilled: MergingVisionTransformerDistilled,
    }
