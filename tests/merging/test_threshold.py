"""Merging by threshold: against the definition, token by token, and with places that hold no token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.errors import InputError
from ltmsearch.merging import Merge, MergeShape, ThresholdMerging, counting, get_operator
from ltmsearch.merging.threshold import join_alike
from ltmsearch.schedules.schedule import THRESHOLDS, MergeSchedule, amount_of

B, N, D, H, C = 3, 13, 8, 2, 4
COUNTS = (13, 6, 1)
"""Tokens that exist in each image; the last are empty places."""


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """(B, 1, N, D) tokens, (B, N) sizes and (B, N, H, C) keys of which many are alike; what is empty holds garbage."""
    generator = torch.Generator().manual_seed(0)
    tokens, kinds = torch.randn(B, 1, N, D, generator=generator), torch.randn(4, H, C, generator=generator)
    keys = kinds[torch.randint(4, (B, N), generator=generator)] + 0.3 * torch.randn(B, N, H, C, generator=generator)
    sizes = torch.randint(1, 4, (B, N), generator=generator).float()
    return tokens, sizes * (torch.arange(N) < torch.tensor(COUNTS)[:, None]), keys


def merge(threshold: float, *, images: slice = slice(None), places: int = N) -> Merge:
    operator = ThresholdMerging(D)
    operator.keep_ratio = threshold
    tokens, sizes, keys = (value[images] for value in inputs())
    return operator(tokens[:, :, :places], sizes[:, :places], (places,), (places,), keys[:, :places])


def by_definition(image: int, threshold: float) -> list[list[int]]:
    """The tokens in each merged token of one image, in order."""
    count, keys = COUNTS[image], inputs()[2][image].flatten(1)
    groups = {place: [place] for place in range(count)}
    for even in range(0, count, 2):
        alike = {odd: float(F.cosine_similarity(keys[even], keys[odd], dim=0)) for odd in range(1, count, 2)}
        if alike and max(alike.values()) >= threshold:
            groups[max(alike, key=alike.__getitem__)] += groups.pop(even)
    return [sorted(groups[place]) for place in sorted(groups)]


@pytest.mark.parametrize("threshold", [0.99, 0.9, 0.5, 1e-6])
def test_merges_are_those_of_the_definition(threshold: float) -> None:
    out, (tokens, sizes, _) = merge(threshold), inputs()
    wanted = [by_definition(image, threshold) for image in range(B)]
    assert out.sizes.shape[1] == max(map(len, wanted)), "as many places as the largest image needs"
    for image, groups in enumerate(wanted):
        for place, members in enumerate(groups):
            size = sizes[image, members]
            torch.testing.assert_close(out.sizes[image, place], size.sum())
            merged = tokens[image, 0, members]
            mean = (merged * size[:, None]).sum(0) / size.sum()
            length = (merged.norm(dim=1) * size).sum() / size.sum()
            torch.testing.assert_close(out.tokens[image, 0, place], mean * length / mean.norm())
        assert not out.sizes[image, len(groups) :].any(), "empty places stand last"
        assert not out.tokens[image, 0, len(groups) :].any()
    assert {len(groups) for groups in wanted} > {1}, "and the images differ"


@pytest.mark.parametrize("image", range(B))
def test_empty_places_change_nothing(image: int) -> None:
    together, alone = merge(0.8), merge(0.8, images=slice(image, image + 1), places=max(2, COUNTS[image]))
    count = alone.sizes.shape[1]
    assert torch.equal(together.sizes[image, :count], alone.sizes[0])
    torch.testing.assert_close(together.tokens[image, :, :count], alone.tokens[0])


def test_values_return_to_the_tokens_that_exist() -> None:
    out, (tokens, _, _) = merge(0.5), inputs()
    assert torch.equal(out.unmerge(tokens, out.tokens), tokens)
    ranks = torch.arange(out.sizes.shape[1], dtype=torch.float32)[:, None].expand(B, 1, -1, 1)
    back = out.assignment.spread(ranks)
    for image in range(B):
        for place, members in enumerate(by_definition(image, 0.5)):
            assert back[image, 0, members, 0].tolist() == [place] * len(members)


def test_the_threshold_itself_is_enough() -> None:
    keys = torch.tensor([[[3.0, 4.0], [6.0, 8.0], [1.0, 0.0]]])
    exists = torch.ones(1, 3, dtype=torch.bool)
    assert join_alike(keys, exists, 0.6)[1].tolist() == [1], "0.6 is the cosine of the first and the last"
    assert join_alike(keys, exists, 0.61)[1].tolist() == [2]


def test_likeness_needs_no_fewer_bits_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rough = merge(0.95)
    assert torch.equal(rough.sizes, merge(0.95).sizes)


def test_counts_of_one_merge_derived_by_hand() -> None:
    shape = MergeShape(grid=(7,), target=(5,), dim=D, heads=H, key_dim=C, groups=1, needs_grid=False)
    assert ThresholdMerging.merge_macs(shape, "matched") == 4 * 3 * H * C, "four even tokens, three odd ones"
    assert ThresholdMerging.target((3, 3), 0.9, "matched") == (4,), "all five even ones may go"


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_traced_programs_are_refused_and_counted_networks_are_not() -> None:
    operator = ThresholdMerging(D)
    operator.keep_ratio = 0.5
    tokens, sizes, keys = (value[:1] for value in inputs())

    def run(x: Tensor) -> Tensor:
        out: Merge = operator(x, sizes, (N,), (N,), keys)
        return out.tokens

    with pytest.raises(InputError, match="cannot be exported"):
        torch.jit.trace(run, tokens)
    with counting(), pytest.warns(torch.jit.TracerWarning):
        torch.jit.trace(run, tokens, check_trace=False)


def test_what_a_schedule_gives_a_layer_has_a_name() -> None:
    assert {name for name in ("ltm", "tome", "threshold") if get_operator(name).adaptive} == THRESHOLDS
    assert [amount_of(name) for name in ("ltm", "threshold")] == ["keep ratio", "threshold"]


@pytest.mark.parametrize("value", [-8, 0, 1.2, "0.9"])
def test_other_thresholds_are_refused(value: object) -> None:
    rule = r"thresholds of threshold merging must be in \(0, 1\], but layer blocks.0 has"
    with pytest.raises(InputError, match=rule):
        MergeSchedule(keep_ratios={"blocks.0": value}, operator="threshold")  # type: ignore[dict-item]
