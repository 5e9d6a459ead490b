"""What a merging operator is, and the registry of them.

Shapes: B images, G groups of tokens that share one mask (the pixel positions of a MobileViT patch; otherwise 1),
N tokens in on an h×w grid, P tokens out on a p×q grid, D channels.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ltmsearch.errors import not_among, unknown_name
from ltmsearch.merging.assignment import Assignment
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form

MaskStart = Literal["auto", "content", "place"]
"""How a fresh mask merges. `content`: tokens that look alike, right when LTM is put into trained weights. `place`:
tokens that stand together, right when training from scratch. `auto`: `place` until the weights of a plain backbone are
loaded around it, `content` from then on."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The outcome of one merge."""

    tokens: Tensor
    """(B, G, P, D) merged tokens X̃."""
    sizes: Tensor
    """(B, P) float32: how many input tokens stand behind each; the sum over P is that of the sizes before."""
    assignment: Assignment
    """Takes values of the merged tokens back to the tokens they came from."""

    def unmerge(self, before: Tensor, after: Tensor) -> Tensor:
        """Residual unmerge `Z + A (X̃_out − X̃_in)`: the identity when the merged path changed nothing.

        Args:
            before: (B, G, N, D) the tokens Z that were merged.
            after: (B, G, P, D) what the merged path made of `tokens`.
        """
        return self.unmerge_change(before, after - self.tokens)

    def unmerge_change(self, before: Tensor, change: Tensor) -> Tensor:
        """`Z + A · change`, for a path that knows what it added to the merged tokens."""
        back = self.assignment.spread(change)
        # In place where that loses nothing: under autocast products come in fewer bits than the tokens have.
        return back.add_(before) if back.dtype == before.dtype else before + back


@dataclass(frozen=True, kw_only=True)
class MergeShape:
    """The sizes of one merge that its cost depends on."""

    grid: Grid
    """(h, w) before."""
    target: Grid
    """(p, q) after."""
    dim: int
    """D, channels per token."""
    key_dim: int
    """Channels of one head's attention keys."""
    groups: int
    """G, groups of tokens that share the assignment."""
    filled: bool
    """Whether merged tokens that no token goes to get the pooled value: see `MergeOperator.fills_empty`."""

    @property
    def n(self) -> int:
        """N, tokens before."""
        return tokens(self.grid)

    @property
    def p(self) -> int:
        """P, tokens after."""
        return tokens(self.target)


class MergeOperator(nn.Module):
    """Merges the N tokens of a grid into the P tokens of a smaller one.

    An operator has at most a few weights of its own; none depends on N, P or the image size, so that one set serves
    every keep ratio at every resolution. A target equal to the grid never reaches an operator.

    Args:
        dim: D, for operators that have weights.
        start: How it merges before it is trained, for operators that learn.
    """

    name: ClassVar[str]
    needs_keys: ClassVar[bool] = False
    """Whether `forward` wants the attention keys of the layer."""
    forms: ClassVar[tuple[Form, ...]]
    """The forms it can merge in; the first is the default."""

    keep_ratio: float = 1.0
    """The keep ratio the layer runs at. Set by `set_schedule`, by nobody else."""
    form: Form
    """One of `forms`: how the layer merges. Set by `set_schedule`, by nobody else."""
    fills_empty: bool = False
    """Whether a merged token that no token goes to takes the pooled value of its place: set by adapters whose layer
    runs a convolution over the merged grid."""

    def __init__(self, dim: int, start: MaskStart = "auto") -> None:
        super().__init__()
        self.form = self.forms[0]

    @abstractmethod
    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge.

        Args:
            tokens: (B, G, N, D).
            sizes: (B, N) float32, how many input tokens stand behind each token; ones before the first merge.
            grid: (h, w) with h·w = N.
            target: (p, q), smaller than `grid`.
            keys: (B, N, C) attention keys, averaged over heads and groups, where `needs_keys`.
        """

    def on_backbone_weights_loaded(self) -> None:
        """Called when trained weights are loaded around an operator without weights for the operator itself."""
        return

    def no_weight_decay(self) -> set[str]:
        """Names of the operator's weights that weight decay would pull away from their meaning."""
        return set()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A checkpoint of the plain backbone holds nothing for the operators: they keep what they have, and the
        # loader has nothing to complain about. One that holds something must hold all.
        if any(name.startswith(prefix) for name in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    @staticmethod
    @abstractmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Multiply-adds of one merge of one image, as fvcore counts them."""

    @staticmethod
    @abstractmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """Multiply-adds of one `Merge.unmerge` of one image."""


OPERATORS: dict[str, type[MergeOperator]] = {}
"""Operators by name."""


def register_operator(operator: type[MergeOperator]) -> type[MergeOperator]:
    """Class decorator: make an operator known under its `name`."""
    OPERATORS[operator.name] = operator
    return operator


def get_operator(name: str) -> type[MergeOperator]:
    """The operator class of that name.

    Raises:
        InputError: If there is none, with the nearest name.
    """
    if name not in OPERATORS:
        raise unknown_name("operator", name, OPERATORS)
    return OPERATORS[name]


def check_form(operator: str, form: str) -> Form:
    """The form, if the operator has it.

    Raises:
        InputError: If it does not, with those that it has.
    """
    for known in get_operator(operator).forms:
        if form == known:
            return known
    raise not_among(f"the form of a merge by {operator!r}", form, get_operator(operator).forms)
