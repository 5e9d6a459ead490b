"""Search spaces: choices as data, distinct where the grids are."""

from pathlib import Path

import numpy as np
import pytest

from ltmsearch.errors import InputError
from ltmsearch.grid import target_grid
from ltmsearch.shipped import find_file, shipped_folder
from ltmsearch.space import SearchSpace, SpaceFile, distinct_ratios, indistinct_choices

GRIDS = {"stages.2.0": (14, 14), "stages.3.0": (7, 7), "stages.4.0": (2, 2)}


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_shipped_spaces_load_and_are_headed_by_an_explanation() -> None:
    files = sorted(shipped_folder("search_spaces").glob("*.yaml"))
    assert [file.stem for file in files] == ["mobilevit"]
    for file in files:
        assert SpaceFile.load(file.stem).family == file.stem
        assert file.read_text().startswith("# ")


def test_rules_hold_for_the_layers_they_match(tmp_path: Path) -> None:
    name = write(
        tmp_path,
        "schema_version: 1\nfamily: mobilevit\nkeep_ratios: [0.5]\n"
        "layers:\n  - {pattern: 'stages.2.*', keep_ratios: [1.0]}\n  - {pattern: '*', keep_ratios: [0.7, 0.5]}\n",
    )
    space = SearchSpace.build(SpaceFile.load(name), GRIDS)
    assert space.choices[0] == (1.0,)
    assert space.choices[1] == (1.0, 0.7, 0.5)
    assert space.size == 1 * 3 * len(space.choices[2])


def test_choices_with_one_grid_are_one_choice() -> None:
    for grid in [(7, 7), (4, 4), (2, 2), (14, 14), (5, 9)]:
        ratios = distinct_ratios([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], grid)
        targets = [target_grid(grid, ratio) for ratio in ratios]
        assert len(set(targets)) == len(targets)
        assert ratios[0] == 1.0
        assert list(ratios) == sorted(ratios, reverse=True)
    assert distinct_ratios([0.99], (2, 2)) == (1.0,)


def test_choices_that_look_alike_on_small_images_are_named() -> None:
    space = SearchSpace(layers=("a", "b"), choices=((1.0, 0.7, 0.5), (1.0, 0.5)))
    alike = indistinct_choices(space, {"a": (2, 2), "b": (4, 4)})
    assert alike == {"a": [(0.7, 0.5)]}


def test_points_and_schedules_translate_both_ways() -> None:
    space = SearchSpace(layers=("a", "b"), choices=((1.0, 0.7, 0.5), (1.0, 0.5)))
    schedule = space.schedule([2, 0])
    assert dict(schedule.keep_ratios) == {"a": 0.5, "b": 1.0}
    assert space.indices(schedule.keep_ratios).tolist() == [2, 0]
    assert space.indices({}).tolist() == [0, 0]
    assert space.nearest(0.55).tolist() == [2, 1]
    assert space.cheapest.tolist() == [2, 1]
    with pytest.raises(ValueError, match="not in tuple"):
        space.indices({"a": 0.6})


def test_random_points_reach_every_choice_and_both_ends() -> None:
    space = SearchSpace(layers=tuple("abc"), choices=((1.0, 0.7, 0.5, 0.3),) * 3)
    points = space.random(np.random.default_rng(0), 5000)
    assert points.min() == 0
    assert points.max() == 3
    assert len(np.unique(points, axis=0)) == space.size
    assert np.array_equal(points, space.random(np.random.default_rng(0), 5000))


def test_digest_tells_spaces_apart() -> None:
    space = SearchSpace(layers=("a",), choices=((1.0, 0.5),))
    assert space.digest() == SearchSpace(layers=("a",), choices=((1.0, 0.5),)).digest()
    assert space.digest() != SearchSpace(layers=("a",), choices=((1.0, 0.6),)).digest()
    assert space.digest() != SearchSpace(layers=("a",), choices=((1.0, 0.5),), operator="tome").digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "schema_version: 1\nfamily: m\nkeep_ratio: [0.5]\n",
            "mine.yaml: unknown setting 'keep_ratio': did you mean keep_ratios",
        ),
        (
            "schema_version: 1\nfamily: m\nkeep_ratios: [0.5, 1.5]\n",
            r"keep_ratios: keep ratios must be .* \(0, 1\], but got \[0.5, 1.5\]",
        ),
        ("schema_version: 1\nfamily: m\nkeep_ratios: []\n", "keep_ratios: keep ratios must be"),
        (
            "schema_version: 9\nfamily: m\nkeep_ratios: [0.5]\n",
            "schema_version: this ltmsearch reads version 1, but got 9",
        ),
        ("schema_version: 1\nfamily: m\n", "mine.yaml: keep_ratios must be given"),
        ("- a\n- b\n", "must hold a mapping"),
        ("a: [1\n", "must be YAML"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpaceFile.load(write(tmp_path, text))


def test_a_pattern_without_a_layer_is_told(tmp_path: Path) -> None:
    name = write(
        tmp_path,
        "schema_version: 1\nfamily: m\nkeep_ratios: [0.5]\nlayers: [{pattern: 'blocks.*', keep_ratios: [0.5]}]\n",
    )
    with pytest.raises(InputError, match="'blocks.\\*' matches no layer"):
        SearchSpace.build(SpaceFile.load(name), GRIDS)


def test_unknown_files_are_told_with_the_shipped_names() -> None:
    with pytest.raises(InputError, match="did you mean mobilevit"):
        find_file("search_spaces", "mobilvit")
    assert find_file("search_spaces", "search_spaces/mobilevit.yaml").name == "mobilevit.yaml"
