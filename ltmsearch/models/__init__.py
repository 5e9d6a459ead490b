"""Backbones: one adapter per family; the only code that imports timm's models.

Importing the package registers all families, and `ltm_<backbone>` with timm.
"""

from ltmsearch.models import efficientvit, eva, fastvit, mobilevit, swin, swinv2, tinyvit, vit  # noqa: F401  (they register)
from ltmsearch.models.adapter import (
    FAMILIES,
    Chain,
    LayerShape,
    blank_image,
    get_adapter,
    known_backbones,
)
from ltmsearch.models.features import feature_dim, pooled_features
from ltmsearch.models.image_counts import ImageCounts, count_tokens, counted
from ltmsearch.models.merging_layer import MERGING, attached_operators
from ltmsearch.models.own_losses import ReturningOwnLoss, output_and_own_loss
from ltmsearch.models.registry import (
    check_operator,
    create_subnet,
    input_config,
    register_with_timm,
    set_schedule,
    write_config,
)
from ltmsearch.models.sequences import layer_modules, prefix_modules
from ltmsearch.models.weights import LoadReport, create_backbone, load_weights

__all__ = [
    "FAMILIES",
    "MERGING",
    "Chain",
    "ImageCounts",
    "LayerShape",
    "LoadReport",
    "ReturningOwnLoss",
    "attached_operators",
    "blank_image",
    "check_operator",
    "count_tokens",
    "counted",
    "create_backbone",
    "create_subnet",
    "feature_dim",
    "get_adapter",
    "input_config",
    "known_backbones",
    "layer_modules",
    "load_weights",
    "output_and_own_loss",
    "pooled_features",
    "prefix_modules",
    "set_schedule",
    "write_config",
]

register_with_timm()
