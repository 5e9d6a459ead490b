"""The ground truth of costs: fvcore's count of a traced model.

Counting rule: one image at a stated size; one multiply-add counts as one; fvcore's total, plus the attention products
QKᵀ and AV, for which fvcore has no handle if they are fused. Index and element-wise operations count zero.
"""

import logging
import warnings
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ltmsearch.merging import counting
from ltmsearch.models import blank_image
from ltmsearch.schedules.grid import Grid

with warnings.catch_warnings():  # fvcore scripts a loss when it is imported, which torch has deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis


def attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """fvcore handle of `scaled_dot_product_attention`: the multiply-adds of QKᵀ and AV."""
    query, key, value = (value.type().sizes() for value in inputs[:3])
    return int(prod(query[:-2]) * query[-2] * key[-2] * (query[-1] + value[-1]))


def traced_macs(model: nn.Module, img_size: Grid, in_chans: int | None = None, *, image: Tensor | None = None) -> int:
    """Multiply-adds of one forward pass for one image of `img_size` (rows, columns) pixels.

    Args:
        image: (1, channels, rows, columns), on which the count depends where tokens merge by threshold; None: zeros.
        in_chans: Channels of the image; None: those of a timm model. Its feature nets (`features_only=True`) and other
            modules do not know theirs.
    """
    return traced_macs_by_module(model, img_size, in_chans, image=image)[""]


def traced_macs_by_module(
    model: nn.Module, img_size: Grid, in_chans: int | None = None, *, image: Tensor | None = None
) -> dict[str, int]:
    """The same by module path, each with its submodules; "" is the whole model. The model's mode is restored."""
    image = blank_image(model, img_size, in_chans) if image is None else image
    was_training = model.training
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it lists all element-wise operations
        with warnings.catch_warnings(), torch.no_grad(), counting():
            warnings.simplefilter("ignore")  # of the tracer, about constant shapes
            analysis = FlopCountAnalysis(model.eval(), image)
            analysis.set_op_handle("aten::scaled_dot_product_attention", attention_macs)
            return {name: int(macs) for name, macs in analysis.by_module().items()}
    finally:
        logger.setLevel(level)
        model.train(was_training)
