"""What a pass saw of merges: against assignments followed one by one, for every family, operator and form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.merges import sample_trace
from support.nets import SMALL, randomise
from torch import Tensor, nn

from ltmsearch.merging import OPERATORS, Merge
from ltmsearch.merging.assignment import HardAssignment, SoftAssignment
from ltmsearch.models import attached_operators, create_subnet
from ltmsearch.models.merge_traces import DROPPED, trace_merges
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.windows import in_windows
from ltmsearch.schedules.schedule import MergeSchedule

FORMS = [
    (name, form) for name, operator in sorted(OPERATORS.items()) if not operator.adaptive for form in operator.forms
]
VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


def supernet(backbone: str, operator: str = "ltm") -> Supernet:
    net = Supernet(backbone, operator=operator, mask_start="content", num_classes=4, img_size=64, **SMALL[backbone])
    randomise(net)
    return net.eval()


def watched(net: nn.Module, layers: tuple[str, ...], images: Tensor) -> dict[str, Merge]:
    """Every merge of one pass, by layer."""
    seen: dict[str, Merge] = {}

    def look(layer: str) -> Any:
        return lambda _module, _args, merge: seen.update({layer: merge})

    handles = [op.register_forward_hook(look(layer)) for layer, op in attached_operators(net, layers).items()]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return seen


def shares(merge: Merge) -> np.ndarray:
    """(B, N, P) an assignment as a matrix, entry by entry."""
    assignment = merge.assignment
    if isinstance(assignment, SoftAssignment):
        return assignment.shares.numpy()
    assert isinstance(assignment, HardAssignment)
    batch, n = assignment.position.shape
    out = np.zeros((batch, n, assignment.count), dtype=np.float32)
    for image in range(batch):
        for token in range(n):
            out[image, token, int(assignment.position[image, token])] = 1
    return out


@pytest.mark.parametrize(("operator", "form"), FORMS)
@pytest.mark.parametrize("backbone", SMALL)
def test_every_patch_is_in_a_token_and_sizes_match(backbone: str, operator: str, form: Any) -> None:
    net = supernet(backbone, operator)
    images = torch.randn(2, 3, 100, 72)  # padded in most families
    schedule = MergeSchedule.uniform(net.layers, 0.6, operator, form)
    with net.active(schedule):
        traces = trace_merges(backbone, net.model, images)
        merges = watched(net.model, net.layers, images)
    assert len(traces) == 2
    for image, trace in enumerate(traces):
        assert [layer.layer for layer in trace] == [name for name in net.layers if name in merges]
        assert len(trace) > 1
        for layer in trace:
            assert (layer.operator, layer.form) == (operator, form)
            n = math.prod(layer.image_grid)
            assert layer.labels.shape == layer.image_grid
            assert layer.labels.min() >= (DROPPED if OPERATORS[operator].drops else 0)
            assert layer.labels.max() < layer.windows * layer.after
            present = layer.labels.ravel() != DROPPED
            assert OPERATORS[operator].drops == (present.sum() < n)
            np.testing.assert_allclose(layer.patch_shares.sum(axis=1), present, rtol=1e-5)
            np.testing.assert_allclose(layer.sizes.sum(), present.sum(), rtol=1e-5)
            own = merges[layer.layer].sizes.reshape(2, -1)[image].numpy()
            np.testing.assert_allclose(layer.sizes, own, atol=0.01)  # padding and empty tokens weigh next to nothing
            for token in (0, int(layer.labels[-1, -1]), *([DROPPED] if OPERATORS[operator].drops else [])):
                weights = layer.weights(token)
                assert weights.shape == layer.image_grid
                np.testing.assert_allclose(weights.sum(), layer.size(token), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["soft", "hard", "matched", "gradient"])
def test_accumulating_merges_are_told_by_the_first_patches(form: Any) -> None:
    """Two merges of a ViT, composed patch by patch."""
    net = supernet(VIT)
    images = torch.randn(2, 3, 96, 96)
    schedule = MergeSchedule.from_mapping(net.layers, {"blocks.1": 0.7, "blocks.3": 0.5}, "ltm", {"*": form})
    with net.active(schedule):
        traces = trace_merges(VIT, net.model, images)
        merges = watched(net.model, net.layers, images)
    first, second = shares(merges["blocks.1"]), shares(merges["blocks.3"])
    last = 13 if form == "matched" else 12  # half of 25 tokens; 12 are 4×3
    for image, (one, two) in enumerate(traces):
        assert (one.before, one.after, two.before, two.after) == (36, 25, 25, last)
        np.testing.assert_allclose(one.shares[0], first[image], atol=1e-6)
        for patch in range(36):
            composed = [sum(first[image, patch, k] * second[image, k, p] for k in range(25)) for p in range(last)]
            np.testing.assert_allclose(two.shares[0, patch], composed, atol=1e-5)
            if form in ("hard", "matched"):
                between = int(first[image, patch].argmax())
                assert two.labels[divmod(patch, 6)] == second[image, between].argmax()


def test_merges_of_a_mobilevit_accumulate_inside_a_block_only() -> None:
    net = supernet("mobilevit_xxs")
    with net.active(MergeSchedule.uniform(net.layers, 0.5, "ltm", "hard")):
        (trace,) = trace_merges("mobilevit_xxs", net.model, torch.randn(1, 3, 160, 160))
    by_block = [(layer.layer.split(".")[1], layer.before, layer.after, layer.image_grid) for layer in trace]
    assert by_block[:3] == [("2", 100, 49, (10, 10)), ("2", 49, 25, (10, 10)), ("3", 25, 12, (5, 5))]
    assert {layer.shares.shape[1] for layer in trace if ".3.1." in f".{layer.layer}"} == {25}


@pytest.mark.parametrize("size", [(224, 224), (100, 132)])
def test_windows_are_put_back_in_their_place(size: tuple[int, int]) -> None:
    """Shifted ones and padding included."""
    net = supernet(SWIN)
    images = torch.randn(1, 3, *size)
    with net.active(MergeSchedule.uniform(net.layers, 0.5, "ltm", "matched")):
        (trace,) = trace_merges(SWIN, net.model, images)
        merges = watched(net.model, net.layers, images)
    assert any(any(net.model.get_submodule(layer.layer).shift_size) for layer in trace)
    for layer in trace:
        rows, columns = layer.image_grid
        window = net.model.get_submodule(layer.layer).window_size
        number = torch.arange(1, rows * columns + 1).view(1, rows, columns, 1).float()
        origin = in_windows(number, window).squeeze(-1).long().numpy()  # (W, N); 0 is padding
        position = merges[layer.layer].assignment.position.numpy()  # type: ignore[attr-defined]
        assert origin.shape == position.shape
        for window, place in zip(*np.nonzero(origin), strict=True):
            row, column = divmod(int(origin[window, place]) - 1, columns)
            assert layer.labels[row, column] == window * layer.after + position[window, place]


def test_patches_stand_where_their_pixels_are() -> None:
    """Strides of the families, known from their papers; whole patches cover 224 pixels."""
    strides = {
        "mobilevit_xxs": {16.0, 32.0, 56.0},  # 2×2 cells each; the last map, of 7×7, is stretched to 8×8
        "efficientvit_b0": {16.0, 32.0},
        VIT: {16},
        SWIN: {4.0, 8.0, 16.0, 32.0},
    }
    for backbone, expected in strides.items():
        net = supernet(backbone)
        with net.active(MergeSchedule.uniform(net.layers, 0.5, "ltm", "hard")):
            (trace,) = trace_merges(backbone, net.model, torch.randn(1, 3, 224, 224))
        assert {layer.token_stride[0] for layer in trace} == {layer.token_stride[1] for layer in trace} == expected
        for layer in trace:
            assert tuple(round(n * stride) for n, stride in zip(layer.image_grid, layer.token_stride, strict=True)) == (
                224,
                224,
            )


def test_a_patch_embedding_that_pads_or_drops_keeps_its_stride() -> None:
    padding = supernet(VIT)
    dropping = create_subnet(VIT, keep_ratios={"*": 0.5}, num_classes=4, **{**SMALL[VIT], "img_size": 100})
    with padding.active(MergeSchedule.uniform(padding.layers, 0.5)):
        padded = trace_merges(VIT, padding.model, torch.randn(1, 3, 100, 100))[0][0]
    dropped = trace_merges(VIT, dropping, torch.randn(1, 3, 100, 100))[0][0]
    assert (padded.image_grid, padded.token_stride) == ((7, 7), (16, 16))
    assert (dropped.image_grid, dropped.token_stride) == ((6, 6), (16, 16))


def test_plain_layers_are_not_told() -> None:
    net = supernet("efficientvit_b0")
    images = torch.randn(1, 3, 64, 64)
    assert trace_merges("efficientvit_b0", net.model, images) == [()]
    chosen = net.layers[1]
    with net.active(MergeSchedule.from_mapping(net.layers, {chosen: 0.5})):
        (trace,) = trace_merges("efficientvit_b0", net.model, images)
    assert [layer.layer for layer in trace] == [chosen]
    with net.active(MergeSchedule.uniform(net.layers, 0.99)):  # no smaller grid is as near
        assert trace_merges("efficientvit_b0", net.model, images) == [()]


def test_looking_on_leaves_nothing_behind() -> None:
    net = supernet("mobilevit_xxs").train()
    images = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    with net.active(MergeSchedule.uniform(net.layers, 0.5)):
        trace_merges("mobilevit_xxs", net.model, images)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(op._forward_hooks for op in attached_operators(net.model, net.layers).values())


def test_tokens_are_found_by_pixel() -> None:
    layer = sample_trace()
    assert layer.labels.tolist() == [[0, 0, 1], [2, 2, 1]]
    assert layer.sizes.tolist() == [1.75, 2, 2.25]
    assert [layer.token_at(x, y) for x, y in ((0, 0), (19, 9), (29, 0), (5, 15), (99, 99))] == [0, 0, 1, 2, 1]
    assert layer.weights(0).tolist() == [[1, 0.75, 0], [0, 0, 0]]
