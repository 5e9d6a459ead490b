"""Token merging: pure tensor functions and operators built on them. Importing the package registers all operators."""

from ltmsearch.merging.ib_step import MaskChange
from ltmsearch.merging.ltm import CONTENT_GAIN, PLACE_GAIN, LearnableTokenMerging
from ltmsearch.merging.operator import (
    OPERATORS,
    MaskStart,
    Merge,
    MergeOperator,
    MergeShape,
    check_form,
    get_operator,
    register_operator,
)
from ltmsearch.merging.pool import PoolMerging
from ltmsearch.merging.precision import full_precision
from ltmsearch.merging.select import TokenSelection
from ltmsearch.merging.threshold import NO_PROGRAM, ThresholdMerging, counting
from ltmsearch.merging.tome import BipartiteSoftMatching

__all__ = [
    "CONTENT_GAIN",
    "NO_PROGRAM",
    "OPERATORS",
    "PLACE_GAIN",
    "BipartiteSoftMatching",
    "LearnableTokenMerging",
    "MaskChange",
    "MaskStart",
    "Merge",
    "MergeOperator",
    "MergeShape",
    "PoolMerging",
    "ThresholdMerging",
    "TokenSelection",
    "check_form",
    "counting",
    "full_precision",
    "get_operator",
    "register_operator",
]
