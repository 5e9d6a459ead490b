"""Merges drawn: every pixel of a panel against the patch that it belongs to, and what a page does when it is used."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import Browse
from support.merges import sample_trace

from ltmsearch.models.merge_traces import DROPPED, LayerMerges
from ltmsearch.reporting.merges import draw_merges, example_sheet, merges_page, pixels_seen
from ltmsearch.reporting.merges.regions import (
    BLANK,
    HEAT,
    UNSEEN,
    default_place,
    grey,
    heading,
    patch_pixels,
    region_panel,
    token_words,
    weight_panel,
)
from ltmsearch.reporting.merges.sheet import panel_size

COLOURS = np.array([[[200, 0, 0], [100, 0, 0], [0, 0, 250]], [[20, 240, 20], [20, 240, 20], [0, 0, 150]]])
"""Of the six patches of `sample_trace`."""


def image() -> np.ndarray:
    """20×30 pixels, ten for a patch."""
    return COLOURS.repeat(10, axis=0).repeat(10, axis=1).astype(np.uint8)


def one_per_patch(rows: int, columns: int, stride: tuple[float, float]) -> LayerMerges:
    count = rows * columns
    return LayerMerges(
        layer="layers.0.blocks.1", operator="tome", form="matched", before=count + 4, image_grid=(rows, columns),
        window=(rows, columns), token_stride=stride, shares=np.eye(count, dtype=np.float32)[None],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "panel", "grid", "stride"),
    [((20, 30), (20, 30), (2, 3), (10, 10)), ((100, 100), (250, 250), (7, 7), (16, 16)),
     ((100, 100), (256, 256), (6, 6), (16, 16)), ((64, 48), (33, 70), (3, 4), (64 / 3, 12.0))],
)  # fmt: skip
def test_every_pixel_belongs_to_the_patch_above_it(
    size: tuple[int, int], panel: tuple[int, int], grid: tuple[int, int], stride: tuple[float, float]
) -> None:
    found = patch_pixels(one_per_patch(*grid, stride), size, panel)
    for y in range(panel[0]):
        for x in range(panel[1]):
            row, column = ((y + 0.5) * size[0] / panel[0]) // stride[0], ((x + 0.5) * size[1] / panel[1]) // stride[1]
            inside = row < grid[0] and column < grid[1]
            assert found[y, x] == (row * grid[1] + column if inside else UNSEEN)


def test_a_region_has_its_mean_colour_and_an_outline() -> None:
    panel = region_panel(image(), sample_trace(), (200, 300))
    middle = panel[50::100, 50::100]
    assert middle[0, 0].tolist() == middle[0, 1].tolist() == [150, 0, 0]
    assert middle[0, 2].tolist() == middle[1, 2].tolist() == [0, 0, 200]
    assert middle[1, 0].tolist() == middle[1, 1].tolist() == [20, 240, 20]
    colours = {tuple(colour) for colour in panel.reshape(-1, 3).tolist()}
    assert len(colours) == 6, "three fills and their outlines"
    assert (panel[10:90, 100] == [150, 0, 0]).all(), "no line inside a region"
    for y, x in ((50, 200), (50, 199), (100, 50), (99, 50), (150, 200)):
        assert tuple(panel[y, x]) not in {(150, 0, 0), (0, 0, 200), (20, 240, 20)}
    assert panel[99, 50].min() > 150, "white on what is dark"
    assert panel[100, 50].max() < 100, "black on what is bright"


def test_pixels_that_no_patch_covers_are_no_region() -> None:
    layer = one_per_patch(1, 1, (16, 16))
    bright = np.full((20, 20, 3), 255, dtype=np.uint8)
    bright[:16, :16] = 30
    panel = region_panel(bright, layer, (200, 200))
    assert panel[80, 80].tolist() == [30, 30, 30], "pixels beyond the patch are not in its mean"
    assert panel[190, 190].tolist() == [255, 255, 255]


def dropping() -> LayerMerges:
    """Of the six patches of `sample_trace`, the first two and the last are dropped."""
    shares = np.zeros((1, 6, 3), dtype=np.float32)
    shares[0, [2, 3, 4], [0, 1, 2]] = 1
    return replace(sample_trace(), operator="select", form="select", shares=shares)


def test_dropped_patches_are_blank_and_in_no_token() -> None:
    layer = dropping()
    assert layer.labels.tolist() == [[DROPPED, DROPPED, 0], [1, 2, DROPPED]]
    assert (layer.token_at(5, 5), layer.size(DROPPED), layer.size(2)) == (DROPPED, 0, 1)
    panel = region_panel(image(), layer, (200, 300))
    middle = panel[50::100, 50::100].reshape(-1, 3)
    assert (middle[[0, 1, 5]] == BLANK).all()
    assert middle[[2, 3, 4]].tolist() == [[0, 0, 250], [20, 240, 20], [20, 240, 20]]
    assert (panel[10:90, 100] == BLANK).all(), "no line between dropped patches"
    weights = weight_panel(image(), layer, DROPPED, (20, 30))
    assert np.array_equal(weights[5, 5], grey(image())[5, 5]), "no heat"
    assert layer.token_at(*default_place([layer])) != DROPPED
    assert heading(layer) == ("blocks.0", "6 to 3 tokens, select")
    assert token_words(layer, DROPPED) == "a dropped patch"
    draw_merges(image(), [layer], place=(5, 5))
    page = merges_page(image(), [layer], title="", subtitle="")
    assert '"shares":null' in page.replace(" ", ""), "labels suffice"


def test_weights_colour_the_grey_image_by_share() -> None:
    panel = weight_panel(image(), sample_trace(), 0, (200, 300))
    dull = grey(np.asarray(Image.fromarray(image()).resize((300, 200), Image.Resampling.LANCZOS)))
    full = 0.2 * dull[50, 50] + 0.8 * HEAT
    part = 0.4 * dull[50, 150] + 0.6 * HEAT
    assert np.abs(panel[50, 50] - full).max() < 1
    assert np.abs(panel[50, 150] - part).max() < 1
    assert panel[150, 50].tolist() == dull[150, 50].tolist(), "nothing of this patch is in the token"
    edge = panel[50, 199], panel[50, 200]
    assert edge[0].max() < 100 < edge[1].min(), "black within the token's region, white around it"


def test_the_place_followed_lies_in_the_largest_token() -> None:
    layer = sample_trace()
    x, y = default_place([layer])
    assert layer.token_at(x, y) == 2
    assert (x, y) == (15.0, 15.0)
    first = replace(layer, shares=alone(layer, 4))
    assert default_place([first, layer]) == (5.0, 15.0), "of its patches, the one that went with others before"
    assert default_place([one_per_patch(5, 5, (4, 4))]) == (10.0, 10.0), "all alike: the middle"


def alone(layer: LayerMerges, patch: int) -> np.ndarray:
    """The assignment of a layer, but with one patch in a token of its own."""
    out = np.concatenate([layer.shares, np.zeros_like(layer.shares[..., :1])], axis=2)
    out[0, patch] = 0, 0, 0, 1
    return out


def test_words() -> None:
    assert heading(sample_trace()) == ("blocks.0", "6 to 3 tokens, ltm soft")
    assert heading(one_per_patch(2, 2, (1, 1))) == ("layers.0.blocks.1", "8 to 4 tokens, tome matched")
    assert token_words(sample_trace(), 0) == "token 0: 1.75 patches"
    assert token_words(sample_trace(), 1) == "token 1: 2 patches"
    assert token_words(one_per_patch(2, 2, (1, 1)), 3) == "token 3: 1 patch"


def test_a_sheet_shows_every_layer_twice() -> None:
    layer = sample_trace()
    sheet = np.asarray(draw_merges(image(), [layer, layer], title="cat – ж.jpg", subtitle="w" * 500, place=(5, 5)))
    height, width = panel_size(image(), [layer], None)
    assert (height, width) == (171, 256)
    regions, weights = region_panel(image(), layer, (height, width)), weight_panel(image(), layer, 0, (height, width))
    assert count_of(sheet, regions[60:]) == 2  # below the ring
    assert count_of(sheet, weights) == 2


def count_of(sheet: np.ndarray, panel: np.ndarray) -> int:
    """How often a panel stands in a sheet."""
    height, width = panel.shape[:2]
    starts = np.argwhere((sheet[: 1 - height, : 1 - width] == panel[0, 0]).all(axis=2))
    return sum(np.array_equal(sheet[y : y + height, x : x + width], panel) for y, x in starts)


def test_an_example_sheet_has_one_row_per_image() -> None:
    traces = [[sample_trace()] * 9] * 3
    sheet = example_sheet([image()] * 3, traces, side=90, most=4)
    panel = region_panel(image(), sample_trace(), (60, 90))
    assert count_of(np.asarray(sheet), panel) == 3 * 4
    assert example_sheet([image()] * 3, [[sample_trace()] * 2] * 3, side=90).width < sheet.width
    assert example_sheet([image()], [()], title="plain").width > 144, "a net that merges nowhere is drawn too"


def test_normalised_images_are_turned_back_into_pixels() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    shown = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    images = ((shown / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    assert all(np.array_equal(a, b) for a, b in zip(pixels_seen(images, mean=mean, std=std), shown, strict=True))


def test_a_page_stands_alone_and_nothing_in_a_name_is_markup() -> None:
    page = merges_page(image(), [sample_trace()], title="</script><b>{{ data }}", subtitle='"a" & b')
    assert "<b>" not in page
    assert page.count("</script>") == 2
    assert "&#34;a&#34; &amp; b" in page
    assert not re.findall(r"(?:src|href)\s*=|https?://", page.replace("picture.src = source", ""))


@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_used(tmp_path: Path, browse: Browse, width: int) -> None:
    layers = [sample_trace(), replace(sample_trace(), layer="blocks.7", shares=two_tokens())]
    file = tmp_path / "page.html"
    file.write_text(merges_page(image(), layers, title="cat.jpg", subtitle="a net", place=(5, 5)), encoding="utf-8")
    visit = browse(file, width=width)
    page = visit.page
    name, token, regions = page.locator("#name"), page.locator("#token"), page.locator("#regions")
    page.wait_for_function("document.getElementById('token').textContent !== ''")
    assert "blocks.0 (1 of 2) 6 to 3 tokens, ltm soft" in name.inner_text()
    assert "Token 0: 1.75 patches." in token.inner_text()
    drawn = weight_panel(image(), sample_trace(), 0, (427, 640))[107, 320]  # of the patch that is shared
    assert colour(page, 0.5, 0.25) == pytest.approx(drawn.tolist(), abs=3)
    box = regions.bounding_box()
    assert box is not None
    assert box["height"] / box["width"] == pytest.approx(2 / 3, abs=0.01)
    regions.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.9})
    assert "Token 1: 2 patches." in token.inner_text()
    regions.focus()
    page.keyboard.press("ArrowLeft")
    assert "Token 2: 2.25 patches." in token.inner_text()
    page.locator("#layer").focus()
    page.keyboard.press("ArrowRight")
    assert "blocks.7 (2 of 2)" in name.inner_text()
    assert "Token 1: 3 patches." in token.inner_text()
    assert visit.overflow == 0
    assert (visit.problems, visit.requests) == ([], [])


def two_tokens() -> np.ndarray:
    """Above and below."""
    return np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]][None]


def colour(page: Any, x: float, y: float) -> list[int]:
    """Of the panel of weights, at a place in shares of its size."""
    return page.evaluate(  # type: ignore[no-any-return]
        "([x, y]) => { const c = document.getElementById('weights'); return Array.from(c.getContext('2d')"
        ".getImageData(Math.floor(x * c.width), Math.floor(y * c.height), 1, 1).data).slice(0, 3) }",
        [x, y],
    )
