"""Interface and registry of merging operators.

Shapes: B images, G groups of tokens that share one mask (the pixel positions of a MobileViT patch; otherwise 1),
N tokens in, P tokens out, D channels, H attention heads with keys of C channels.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ltmsearch.errors import InputError, check_choice, not_among, unknown_name
from ltmsearch.merging.assignment import Assignment
from ltmsearch.merging.ib_step import MaskChange
from ltmsearch.schedules.grid import Grid, kept_tokens, on_grid, target_grid, tokens
from ltmsearch.schedules.schedule import Form

MaskStart = Literal["auto", "content", "place"]
"""Initial mask of LTM. `content` merges similar tokens, for trained backbone weights. `place` merges neighbouring
tokens, for training from scratch. `auto` is `place` until weights of a plain backbone are loaded, then `content`."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Result of one merge."""

    tokens: Tensor
    """(B, G, P, D) merged tokens X̃."""
    sizes: Tensor
    """(B, P) float32: number of input tokens in each; the sum over P is that of the sizes before, without what is left
    out."""
    assignment: Assignment
    """Carries values between tokens and merged tokens."""
    left_out: Tensor | None = None
    """(B, N) float32: share of each token that is in no merged token; None: an operator that leaves out nothing."""
    change: MaskChange | None = None
    """How steps have changed the mask, for the next layer to continue from; None: the form takes no steps."""

    def unmerge(self, before: Tensor, after: Tensor) -> Tensor:
        """Residual unmerge `Z + A (X̃_out − X̃_in)`: the identity if the merged tokens did not change.

        Also for tokens that are in none.

        From (B, G, N, D) tokens Z before the merge and (B, G, P, D) merged tokens after further layers.
        """
        return self.unmerge_change(before, after - self.tokens)

    def unmerge_change(self, before: Tensor, change: Tensor) -> Tensor:
        """`Z + A · change`, if the change of the merged tokens is known."""
        back = self.assignment.spread(change)
        # In place only in the same dtype: under autocast products have fewer bits than the tokens.
        return back.add_(before) if back.dtype == before.dtype else before + back

    def at_places(self, before: Tensor, values: Tensor) -> Tensor:
        """`A · values`: the value of each merged token at the places of its tokens; those in none keep their own.

        From (B, G, N, C) values before the merge and (B, G, P, C) after it.
        """
        back = self.assignment.spread(values)
        return back if self.left_out is None else back + before * self.left_out[:, None, :, None].to(before.dtype)


@dataclass(frozen=True, kw_only=True)
class MergeShape:
    """Sizes of one merge that determine its cost."""

    grid: Grid
    """(h, w) before, or (N,) on no grid."""
    target: Grid
    """(p, q) after, or (P,)."""
    dim: int
    """D, channels per token."""
    heads: int
    """H, attention heads with keys of their own."""
    key_dim: int
    """C, channels of one head's attention keys."""
    groups: int
    """G, groups of tokens that share the assignment."""
    needs_grid: bool
    """See `MergeOperator.needs_grid`."""
    carried: int = 0
    """Further numbers of each token, such as its place, that the layer carries to the merged tokens."""

    @property
    def n(self) -> int:
        """N, tokens before."""
        return tokens(self.grid)

    @property
    def p(self) -> int:
        """P, tokens after."""
        return tokens(self.target)


class MergeOperator(nn.Module):
    """Merges N tokens into P.

    No weight of an operator depends on N, P or the image size, so that one set serves every keep ratio at every
    resolution. An operator is never called with a target equal to the grid.

    Args:
        dim: D, for operators with weights.
        start: Initial mask, for operators that learn.
    """

    name: ClassVar[str]
    forms: ClassVar[tuple[Form, ...]]
    """Supported forms; the first is the default, unless a family has another (`Adapter.best_forms`)."""
    grid_forms: ClassVar[tuple[Form, ...]] = ()
    """Forms that merge by place: from a grid to the smaller grid with nearly the wanted number of tokens. The others
    keep exactly that number, on no grid."""
    keyed_forms: ClassVar[tuple[Form, ...]] = ()
    """Forms for which `forward` needs the attention keys of the layer."""
    adaptive: ClassVar[bool] = False
    """Whether the number of tokens that a merge leaves depends on the image; `keep_ratio` is then a threshold, and
    `target` the fewest tokens that a merge can leave. In a batch, places without a token have the size 0."""
    drops: ClassVar[bool] = False
    """Whether tokens are left out instead of merged: see `Merge.left_out`."""
    step_forms: ClassVar[tuple[Form, ...]] = ()
    """Forms whose mask continues from that of the layer before: see `Merge.change`."""

    keep_ratio: float = 1.0
    """Keep ratio of the layer; set only by `set_schedule`."""
    form: Form
    """Form of the merge, one of `forms`; set only by `set_schedule`."""
    needs_grid: bool = False
    """Whether merged tokens stand on a grid in every form, and empty ones get the pooled value of their place: set by
    adapters whose layer runs a convolution on the merged tokens."""
    own_losses: list[Tensor] | None = None
    """Where `forward` leaves the operator's own loss, a number without its weight; None unless a training adds it."""

    def __init__(self, dim: int, start: MaskStart = "auto") -> None:
        super().__init__()
        check_choice("start", start, MaskStart)
        self.form = self.forms[0]

    @property
    def needs_keys(self) -> bool:
        """Whether `forward` needs the attention keys of the layer."""
        return self.form in self.keyed_forms

    @classmethod
    def target(cls, grid: Grid, keep_ratio: float, form: Form, *, needs_grid: bool = False) -> Grid:
        """The tokens that a merge leaves: on a smaller grid, (P,) on none, or `grid` itself if it merges nothing.

        Raises:
            InputError: For a form that merges by place, if the tokens stand on no grid.
        """
        if form in cls.grid_forms or needs_grid:
            if not on_grid(grid):
                raise InputError(
                    f"merges by place need tokens on a grid, but an earlier merge by similarity has left it, and a "
                    f"later layer has the form {form!r}: give that layer the form 'matched'"
                )
            return target_grid(grid, keep_ratio)
        n = tokens(grid)
        kept = kept_tokens(n, keep_ratio)
        return grid if kept == n else (kept,)

    @abstractmethod
    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge tokens.

        Args:
            tokens: (B, G, N, D).
            sizes: (B, N) float32, number of input tokens in each token; ones before the first merge.
            grid: (h, w) with h·w = N, or (N,) on no grid.
            target: (p, q) or (P,): see `target`.
            keys: (B, N, H, C) attention keys, averaged over groups, if `needs_keys`.
        """

    def own_loss_weight(self, progress: float) -> float | None:
        """Weight of a loss of the operator's own, which trainings add to theirs; None: it has none.

        `progress`: share of the training that is done, in [0, 1].
        """
        return None

    def merge_from(self, change: MaskChange | None, *args: Any) -> Merge:
        """`forward` of `args`, from the change of the last mask before, where the operator takes steps."""
        return self(*args)

    def with_all_weights(self, x: Tensor) -> Tensor:
        """`x`, to whose gradient every weight of the operator contributes zero: distributed training requires one."""
        zero = sum((weight * 0).sum() for weight in self.parameters())
        return x if isinstance(zero, int) else x + zero.to(x.dtype)  # the sum of no weights is an int

    def on_merges_stay(self) -> None:
        """Called once by adapters whose merges are never undone: later layers see merged tokens as they are."""

    def on_backbone_weights_loaded(self) -> None:
        """Called when weights of a plain backbone are loaded, without weights of this operator."""

    def no_weight_decay(self) -> set[str]:
        """Names of the operator's weights without weight decay."""
        return set()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A checkpoint of a plain backbone has no weights of operators, which is not an error; a partial one is.
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
    """Class decorator that registers an operator under its `name`."""
    OPERATORS[operator.name] = operator
    return operator


def get_operator(name: str) -> type[MergeOperator]:
    """The operator class of that name; raises an `InputError` if there is none."""
    if not isinstance(name, str) or name not in OPERATORS:
        raise unknown_name("operator", name, OPERATORS)
    return OPERATORS[name]


def check_form(operator: str, form: str) -> Form:
    """Return the form; raise InputError if the operator does not support it."""
    forms = get_operator(operator).forms
    if form not in forms:
        raise not_among(f"the form of a merge by {operator!r}", form, forms)
    return form
