"""Losses of the operators' own, for the training that adds them to its loss."""

from torch import Tensor, nn

from ltmsearch.merging import MergeOperator


def output_and_own_loss(model: nn.Module, images: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
    """The output of a forward pass, and the weighted sum of its merges' own losses; None if there are none.

    Without an operator that has a loss of its own, nothing is done but the pass. `progress`: share of the training that
    is done, in [0, 1].
    """
    operators = [module for module in model.modules() if isinstance(module, MergeOperator)]
    weights = {o: weight for o in operators if (weight := o.own_loss_weight(progress)) is not None}
    for operator in weights:
        operator.own_losses = []
    try:
        output = model(images)
        terms = [weight * loss for operator, weight in weights.items() for loss in operator.own_losses or ()]
    finally:
        for operator in weights:
            operator.own_losses = None
    return output, sum(terms[1:], terms[0]) if terms else None


class ReturningOwnLoss(nn.Module):
    """A network whose output has the operators' own loss beside it.

    Distributed training finds the weights that a pass has used by its outputs: a loss elsewhere would be missed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        """See `output_and_own_loss`."""
        return output_and_own_loss(self.model, images, progress)
