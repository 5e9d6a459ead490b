"""Other ways to train a selection than that of the operator `select`, whose choice they share."""

from typing import ClassVar

from torch import Tensor

from ltmsearch.merging import Merge, TokenSelection
from ltmsearch.merging.assignment import PartialSelection, Selection
from ltmsearch.merging.select import taken


class SelectionAsPublished(TokenSelection):
    """All tokens, times their shares: p ⊙ X, which attention does not count otherwise."""

    name: ClassVar[str] = "select p X"

    def relaxed(self, tokens: Tensor, sizes: Tensor, selection: Selection, shares: Tensor) -> Merge:
        weighted = tokens * shares[:, None, :, None].to(tokens.dtype)
        return Merge(tokens=weighted, sizes=sizes, assignment=PartialSelection(shares), left_out=1 - shares)


class SelectionByGate(TokenSelection):
    """The tokens that stay alone, with the gradient of their shares."""

    name: ClassVar[str] = "select by gate"

    def relaxed(self, tokens: Tensor, sizes: Tensor, selection: Selection, shares: Tensor) -> Merge:
        return taken(tokens, sizes, selection)


SELECTIONS = (SelectionAsPublished, SelectionByGate)
