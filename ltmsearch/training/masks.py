"""Start of a training's gradient masks from data: fitted before the first epoch, by one process for all."""

import torch
from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.distributed import Ranks
from ltmsearch.engine.mask_fit import fit_layer
from ltmsearch.engine.runtime import Runtime
from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.models import attached_operators, get_adapter
from ltmsearch.training.learner import Learner


def fit_new_masks(
    learner: Learner, recipe: Recipe, data: ImageData, runtime: Runtime, ranks: Ranks, callbacks: Callbacks
) -> None:
    """Fit the gradient steps that are at their start, in the network and its average, for all processes.

    In the order of execution, each to what the fitted layers before it leave of the images.

    Raises:
        InputError: As `fit_layer`.
    """
    net, ema = learner.model, learner.ema
    first, *others = (_unfitted(each, recipe) for each in ([net] if ema is None else [net, ema.module]))
    if first and ranks.is_main:
        callbacks.phase("fitting masks", len(first))
        for done, operator in enumerate(first.values(), start=1):
            fit_layer(net, operator, data, runtime, seed=recipe.seed)
            callbacks.advance(done)
    with torch.no_grad():
        for layer, operator in first.items():
            for name, weight in operator.step.named_parameters():
                ranks.broadcast_(weight.data)
                for other in others:
                    other[layer].step.get_parameter(name).copy_(weight)


def _unfitted(net: nn.Module, recipe: Recipe) -> dict[str, LearnableTokenMerging]:
    """Operators of the gradient form whose steps are at their start, by layer."""
    operators = attached_operators(net, get_adapter(recipe.backbone).layers(net))
    return {
        layer: operator
        for layer, operator in operators.items()
        if isinstance(operator, LearnableTokenMerging) and operator.form == "gradient" and not operator.step.fitted
    }
