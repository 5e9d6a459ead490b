"""Gradient masks of a study that start from data: those of trained weights, at layers that may take the form."""

from ltmsearch.engine.mask_fit import IMAGES
from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.models import attached_operators
from ltmsearch.search.setup import StudyContext


def unfitted_masks(context: StudyContext) -> dict[str, float]:
    """Layers whose gradient steps are at their start and are to be fitted before the warm-up, with a keep ratio each.

    None, if the weights are random. The ratio is the middle one of the layer's choices in this form.
    """
    settings, space, supernet = context.settings, context.space, context.evaluator.supernet
    if not settings.pretrained and settings.checkpoint is None and context.prior is None:
        return {}
    masks: dict[str, float] = {}
    for layer, operator in attached_operators(supernet.model, space.layers).items():
        offered = space.choices[space.layers.index(layer)]
        ratios = [choice.keep_ratio for choice in offered if choice.form == "gradient"]
        if ratios and isinstance(operator, LearnableTokenMerging) and not operator.step.fitted:
            masks[layer] = ratios[len(ratios) // 2]
    return masks


def fitting_seconds(context: StudyContext) -> float:
    """Expected wall time of fitting them: passes end at the layer, on average in the middle of the network."""
    return len(unfitted_masks(context)) * IMAGES * context.trial_rates.first_image / 2
