"""Training a recipe: from scratch, from a supernet's weights, or from a checkpoint."""

from ltmsearch.finetune.options import BEST, LAST, LOG, RECIPE, STATE, TrainingOptions, default_folder
from ltmsearch.finetune.session import TrainingResult, train_recipe

__all__ = [
    "BEST",
    "LAST",
    "LOG",
    "RECIPE",
    "STATE",
    "TrainingOptions",
    "TrainingResult",
    "default_folder",
    "train_recipe",
]
