"""A small trace of merges, made by hand."""

import numpy as np

from ltmsearch.models.merge_traces import LayerMerges


def sample_trace() -> LayerMerges:
    """Two rows of three patches of 10 pixels in three tokens; one patch is shared."""
    matrix = np.zeros((1, 6, 3), dtype=np.float32)
    matrix[0, range(6), [0, 0, 1, 2, 2, 1]] = 1
    matrix[0, 1] = 0.75, 0, 0.25
    return LayerMerges(
        layer="blocks.0", operator="ltm", form="soft", before=6, image_grid=(2, 3), window=(2, 3),
        token_stride=(10, 10), shares=matrix,
    )  # fmt: skip
