"""Search spaces: choices as data, distinct where the grids are."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
from support.layers import FakeLayers

from ltmsearch.errors import InputError
from ltmsearch.io.presets import find_file, shipped_folder
from ltmsearch.merging import OPERATORS
from ltmsearch.models import FAMILIES
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import IBWeights, SearchSpace, colliding_ratios, layer_choices
from ltmsearch.schedules.space_file import Offer, SpaceFile

GRIDS: dict[str, Grid] = {"stages.2.0": (14, 14), "stages.3.0": (7, 7), "stages.4.0": (2, 2)}
HEAD = "schema_version: 1\nfamily: m\n"
PLAIN = Choice(1.0)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def build(
    folder: Path, text: str, operator: str = "ltm", reduces_cost: Callable[[str, Choice], bool] = lambda *_: True
) -> SearchSpace:
    """The space of a file's text behind `HEAD`."""
    layers = FakeLayers(layer_grids=GRIDS, operator=operator, pays=reduces_cost)
    return SearchSpace.build(SpaceFile.load(write(folder, HEAD + text), family="m"), layers)


def soft(*ratios: float) -> tuple[Choice, ...]:
    """Plain, and the soft form of some ratios."""
    return (PLAIN, *(Choice(ratio, "soft") for ratio in ratios))


def test_shipped_spaces_load_and_are_headed_by_an_explanation() -> None:
    files = sorted(shipped_folder("search_spaces").glob("*.yaml"))
    assert [file.stem for file in files] == sorted(adapter.family for adapter in FAMILIES)
    for file in files:
        assert SpaceFile.load(None, family=file.stem) == SpaceFile.load(file.stem, family=file.stem)
        assert file.read_text().startswith("# "), file


def test_rules_hold_for_the_layers_they_match(tmp_path: Path) -> None:
    space = build(
        tmp_path,
        "keep_ratios: [0.5]\nforms: [soft]\n"
        "layers:\n  - {pattern: 'stages.2.*', keep_ratios: [1.0]}\n  - {pattern: '*', keep_ratios: [0.7, 0.5]}\n",
    )
    assert space.layers == tuple(GRIDS)
    assert space.choices[0] == (PLAIN,)
    assert space.choices[1] == soft(0.7, 0.5)
    assert space.size == 1 * 3 * len(space.choices[2])


def test_choices_are_sorted_by_ratio_then_form(tmp_path: Path) -> None:
    wanted = (PLAIN, *(Choice(ratio, form) for ratio in (0.7, 0.5, 0.25) for form in ("soft", "hard")))
    assert wanted[1:3] == (Choice(0.7, "soft"), Choice(0.7, "hard"))
    for text in ("keep_ratios: [0.5, 0.25, 0.7]\n", "keep_ratios: [0.25, 1, 0.7, 0.5]\nforms: [hard, soft, hard]\n"):
        assert build(tmp_path, text).choices[0] == wanted


def test_forms_of_a_file_and_of_a_rule(tmp_path: Path) -> None:
    space = build(
        tmp_path,
        "keep_ratios: [0.5]\nforms: [soft]\nlayers:\n"
        "  - {pattern: stages.3.0, keep_ratios: [0.5, 0.25], forms: [hard]}\n"
        "  - {pattern: 'stages.[34].*', keep_ratios: [0.5], forms: [soft, hard]}\n",
    )
    assert space.choices == (
        soft(0.5),
        (PLAIN, Choice(0.5, "hard"), Choice(0.25, "hard")),
        (PLAIN, Choice(0.5, "soft"), Choice(0.5, "hard")),
    )
    # Both where neither says anything; a rule without forms takes the file's.
    assert build(tmp_path, "keep_ratios: [0.5]\n").choices[0] == (PLAIN, Choice(0.5, "soft"), Choice(0.5, "hard"))
    rule = "layers: [{pattern: '*', keep_ratios: [0.7]}]\n"
    assert build(tmp_path, f"keep_ratios: [0.5]\nforms: [hard]\n{rule}").choices[0] == (PLAIN, Choice(0.7, "hard"))


@pytest.mark.parametrize("operator", sorted(n for n, op in OPERATORS.items() if len(op.forms) == 1 and not op.adaptive))
@pytest.mark.parametrize("forms", ["[soft]", "[hard]", "[soft, hard]"])
def test_operators_with_one_form_take_that_one(tmp_path: Path, operator: str, forms: str) -> None:
    space = build(tmp_path, f"keep_ratios: [0.7, 0.5]\nforms: {forms}\n", operator)
    assert space.choices[0] == (PLAIN, Choice(0.7), Choice(0.5))
    assert dict(space.schedule([1, 2, 0]).forms) == {}
    assert space.schedule([1, 2, 0]).operator == operator


def test_choices_that_do_not_pay_are_left_out(tmp_path: Path) -> None:
    asked: list[tuple[str, Choice]] = []

    def reduces_cost(layer: str, choice: Choice) -> bool:
        asked.append((layer, choice))
        return layer == "stages.3.0" or (layer == "stages.2.0" and (choice.form == "hard" or choice.keep_ratio < 0.6))

    text = "keep_ratios: [0.7, 0.5]\n"
    space = build(tmp_path, text, reduces_cost=reduces_cost)
    everything = build(tmp_path, text)
    assert space.choices[0] == (PLAIN, Choice(0.7, "hard"), Choice(0.5, "soft"), Choice(0.5, "hard"))
    assert space.choices[1] == everything.choices[1]
    assert space.choices[2] == (PLAIN,), "plain is always a choice"
    assert PLAIN not in {choice for _, choice in asked}
    assert space.nearest(0.7).tolist() == [1, 1, 0]
    assert dict(space.schedule(space.nearest(0.7)).forms) == {"stages.2.0": "hard", "stages.3.0": "soft"}


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_points_come_back_from_their_schedules(tmp_path: Path, operator: str) -> None:
    text = "keep_ratios: [0.7, 0.5, 0.35, 0.25]\nthresholds: [0.95, 0.9, 0.6]\n"
    space = build(tmp_path, text, operator)
    points = space.random(np.random.default_rng(0), 200)
    for point in points:
        schedule = space.schedule(point)
        several = len(OPERATORS[operator].forms) > 1
        assert set(schedule.forms) == (set(schedule.merging_layers) if several else set())
        # As a file or another program may have written it: without the default form, or with it said aloud.
        first = OPERATORS[operator].forms[0]
        loud = {layer: schedule.form(layer) or first for layer in space.layers}
        quiet = {layer: form for layer, form in schedule.forms.items() if form != first}
        for forms in (loud, quiet):
            spelt = MergeSchedule(keep_ratios=schedule.keep_ratios, operator=operator, forms=forms)
            assert np.array_equal(space.indices(spelt), point)
    assert len({space.schedule(point) for point in points}) == len(np.unique(points, axis=0))


def test_thresholds_stand_in_place_of_ratios(tmp_path: Path) -> None:
    """Each is a choice of its own: how many tokens it keeps depends on the image."""
    head = "keep_ratios: [0.5]\nkeep_counts: [-2]\nthresholds: [0.9, 1.0, 0.99]\n"
    rules = """layers:
- {pattern: "stages.2.*", keep_ratios: [0.7], thresholds: [0.8]}
- {pattern: "stages.3.*", keep_ratios: [1.0]}
"""
    space = build(tmp_path, head + rules, "threshold")
    assert space.choices == ((PLAIN, Choice(0.8)), (PLAIN,), (PLAIN, Choice(0.99), Choice(0.9)))
    layers = FakeLayers(layer_grids=GRIDS, operator="threshold")
    assert colliding_ratios(space, layers) == {}
    with pytest.raises(
        InputError, match=r"must have `thresholds`, cosines in \(0, 1\] .* but that of family 'm' has none"
    ):
        build(tmp_path, "keep_ratios: [0.5]\n", "threshold")
    with pytest.raises(InputError, match="thresholds"):
        build(tmp_path, "keep_ratios: [0.5]\nthresholds: [-4]\n", "threshold")


def test_possible_choices_count_a_grid_once() -> None:
    # On 7×7, 0.7 and 0.75 are both 6×6, of which 0.75 is nearer.
    layers = FakeLayers(layer_grids={"a": (7, 7), "b": (2, 2)})
    ratios = [choice.keep_ratio for choice in layer_choices(layers, "a", Offer((0.7, 0.75, 0.5), ("soft", "hard")))]
    assert ratios == [1.0, 0.75, 0.75, 0.5, 0.5]
    assert layer_choices(layers, "b", Offer((0.99,), ("soft", "hard"))) == (PLAIN,)
    with pytest.raises(
        InputError, match="the form of a merge must be soft, hard, matched, gradient, select, but got 'firm'"
    ):
        layer_choices(layers, "a", Offer((0.5,), ("firm",)))  # type: ignore[arg-type]


def test_a_form_that_leaves_the_grid_has_choices_of_its_own() -> None:
    """On 7×7, 0.7 and 0.75 are both 6×6 on the grid, but 34 and 37 tokens on none."""
    layers = FakeLayers(layer_grids={"a": (7, 7)})
    choices = layer_choices(layers, "a", Offer((0.7, 0.75), ("matched", "hard")))
    assert choices == (PLAIN, Choice(0.75, "matched"), Choice(0.75, "hard"), Choice(0.7, "matched"))
    assert [prod(layers.target("a", choice)) for choice in choices] == [49, 37, 36, 34]
    beside_a_convolution = FakeLayers(layer_grids={"a": (7, 7)}, needs_grid=True)
    both = (PLAIN, Choice(0.75, "hard"), Choice(0.75, "matched"))
    assert layer_choices(beside_a_convolution, "a", Offer((0.7, 0.75), ("matched", "hard"))) == both


def test_counts_and_ratios_that_keep_the_same_tokens_are_one_choice(tmp_path: Path) -> None:
    layers = FakeLayers(layer_grids={"a": (4, 4)})
    # 16 tokens: -4 and 0.75 leave 12; 0.76 leaves them too, but 12/16 is not its share; half is the most to remove.
    matched = layer_choices(layers, "a", Offer((0.76, 0.75, -1, -4, -8, -100), ("matched",)))
    assert matched == (PLAIN, Choice(-1, "matched"), Choice(0.75, "matched"), Choice(-8, "matched"))
    assert layer_choices(layers, "a", Offer((0.76, -4), ("matched",))) == (PLAIN, Choice(-4, "matched"))
    # On the grid, -5 is 4×3 as -4 is, which leaves these exactly.
    assert layer_choices(layers, "a", Offer((-5, -4), ("soft",))) == (PLAIN, Choice(-4, "soft"))
    text = "keep_ratios: [1.0]\nkeep_counts: [-8]\nforms: [matched]\nlayers:\n"
    space = build(tmp_path, text + "  - {pattern: stages.3.0, keep_ratios: [0.5], keep_counts: [-3]}\n")
    assert space.choices == (
        (PLAIN, Choice(-8, "matched")),
        (PLAIN, Choice(-3, "matched"), Choice(0.5, "matched")),
        (PLAIN, Choice(-8, "matched")),
    )
    assert dict(space.schedule([1, 1, 1]).keep_ratios) == {"stages.2.0": -8, "stages.3.0": -3, "stages.4.0": -8}


def test_behind_a_merge_off_the_grid_ratios_and_counts_differ() -> None:
    """Of 16 tokens -4 and 0.75 leave 12; of 12, which the second layer may get, they leave 8 and 9."""
    offer = Offer((0.75, -4), ("matched",))
    layers = FakeLayers(layer_grids={"a": (4, 4), "b": (4, 4)}, chained=(("a", "b"),))
    assert layer_choices(layers, "a", offer) == (PLAIN, Choice(0.75, "matched"))
    assert set(layer_choices(layers, "b", offer)) == {PLAIN, Choice(0.75, "matched"), Choice(-4, "matched")}
    # Where merges keep the grid they do not accumulate in tokens off it, and equal grids are one choice.
    kept = Offer((0.75, -4), ("soft",))
    assert len(layer_choices(layers, "b", kept)) == 2
    choices = (PLAIN, Choice(0.75, "matched"), Choice(-4, "matched"))
    space = SearchSpace(layers=("a", "b"), choices=(choices, choices), layer_tokens=(196, 196))
    assert colliding_ratios(space, layers) == {"a": [(0.75, -4)]}, "at the second layer they are different networks"


def test_a_form_by_place_behind_one_that_leaves_the_grid_is_refused() -> None:
    grids: dict[str, Grid] = {"a": (7, 7), "b": (7, 7), "c": (7, 7)}

    def build_of(*forms: tuple[Form, ...], chained: bool = True, needs_grid: bool = False) -> SearchSpace:
        rules = [{"pattern": n, "keep_ratios": [0.5], "forms": f} for n, f in zip(grids, forms, strict=True) if f]
        content = {"schema_version": 1, "family": "m", "keep_ratios": [1.0], "layers": rules}
        sequences = (("a", "b", "c"),) if chained else ()
        layers = FakeLayers(layer_grids=grids, chained=sequences, needs_grid=needs_grid)
        return SearchSpace.build(SpaceFile.model_validate(content), layers)

    for refused in (
        (("matched",), ("soft",), ()),
        (("matched",), (), ("matched", "hard")),
        (("soft", "matched"), ("soft", "matched"), ("matched",)),
    ):
        with pytest.raises(InputError) as caught:
            build_of(*refused)
        (behind, form) = ("c", "hard") if not refused[1] else ("b", "soft")
        assert str(caught.value) == (
            f"forms of a search space must not need a grid behind a form that leaves it, but {behind} offers {form} "
            "behind matched at a, whose merges it builds on: give these layers forms that all keep the grid (soft, "
            "hard, gradient) or only matched"
        )
        assert build_of(*refused, chained=False).size > 1
        assert build_of(*refused, needs_grid=True).size > 1, "all stay on the grid"
    assert build_of(("soft", "hard"), ("hard", "matched"), ("matched",)).size == 3 * 3 * 2


def test_choices_that_look_alike_on_small_images_are_named() -> None:
    both = (PLAIN, *(Choice(ratio, form) for ratio in (0.7, 0.5) for form in ("soft", "hard")))
    space = SearchSpace(layers=("a", "b"), choices=(both, soft(0.5)), layer_tokens=(196, 196))
    alike = colliding_ratios(space, FakeLayers(layer_grids={"a": (2, 2), "b": (4, 4)}))
    assert alike == {"a": [(0.7, 0.5)]}
    choices = (PLAIN, *(Choice(-n, "matched") for n in (8, 16, 24)))
    counts = SearchSpace(layers=("a",), choices=(choices,), layer_tokens=(196,))
    assert colliding_ratios(counts, FakeLayers(layer_grids={"a": (5, 5)})) == {"a": [(-16, -24)]}
    assert colliding_ratios(counts, FakeLayers(layer_grids={"a": (1, 1)})) == {"a": [(1, -8, -16, -24)]}


def test_points_and_schedules_translate_both_ways() -> None:
    space = SearchSpace(layers=("a", "b"), choices=(soft(0.7, 0.5), soft(0.5)), layer_tokens=(196, 49))
    schedule = space.schedule([2, 0])
    assert dict(schedule.keep_ratios) == {"a": 0.5, "b": 1.0}
    assert space.indices(schedule).tolist() == [2, 0]
    assert space.indices(MergeSchedule(keep_ratios={})).tolist() == [0, 0]
    assert space.nearest(0.55).tolist() == [2, 1]
    assert space.cheapest.tolist() == [2, 1]
    with pytest.raises(ValueError, match="not in tuple"):
        space.indices(MergeSchedule(keep_ratios={"a": 0.6}))
    with pytest.raises(ValueError, match="not in tuple"):
        space.indices(MergeSchedule(keep_ratios={"a": 0.5}, forms={"a": "hard"}))


def test_the_nearest_choice_is_that_of_the_nearest_share() -> None:
    choices = (PLAIN, Choice(-4, "matched"), Choice(0.75, "hard"), Choice(0.5, "matched"), Choice(-30, "matched"))
    space = SearchSpace(layers=("a", "b"), choices=(choices, (PLAIN,)), layer_tokens=(64, 64))
    # Shares of 64 tokens: 1, 60/64 = 0.9375, 0.75, 0.5, and 34/64 = 0.53125.
    for ratio, wanted in ((0.99, 0), (0.9, 1), (-4, 1), (-1, 0), (-16, 2), (0.6, 4), (-29, 4), (0.51, 3), (-100, 3)):
        assert space.nearest(ratio).tolist() == [wanted, 0], ratio
    assert space.nearest_choice(0, 0.99, merging=True) == 1
    assert space.nearest_choice(1, 0.5, merging=True) == 0, "the only choice"
    same = (PLAIN, Choice(-32, "hard"), Choice(0.5, "hard"), Choice(-32, "matched"))
    space = SearchSpace(layers=("a",), choices=(same,), layer_tokens=(64,))
    assert [space.nearest_choice(0, 0.5, form) for form in (None, "hard", "matched")] == [2, 2, 3]
    assert [space.nearest_choice(0, -32, form) for form in (None, "hard", "matched")] == [1, 1, 3]


def test_random_points_reach_every_choice_and_both_ends() -> None:
    space = SearchSpace(layers=tuple("abc"), choices=(soft(0.7, 0.5, 0.3),) * 3, layer_tokens=(49,) * 3)
    points = space.random(np.random.default_rng(0), 5000)
    assert points.min() == 0
    assert points.max() == 3
    assert len(np.unique(points, axis=0)) == space.size
    assert np.array_equal(points, space.random(np.random.default_rng(0), 5000))


def test_digest_tells_spaces_apart() -> None:
    digests = [
        SearchSpace(layers=("a",), choices=choices, layer_tokens=(49,), operator=operator).digest()
        for choices, operator in (
            ((soft(0.5),), "ltm"),
            ((soft(0.6),), "ltm"),
            (((PLAIN, Choice(0.5, "hard")),), "ltm"),
            (((PLAIN, Choice(0.5)),), "ltm"),
            (((PLAIN, Choice(0.5)),), "tome"),
        )
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == SearchSpace(layers=("a",), choices=(soft(0.5),), layer_tokens=(49,)).digest()


def test_ib_weights_are_part_of_a_space_and_of_its_digest(tmp_path: Path) -> None:
    without = build(tmp_path, "keep_ratios: [0.5]\n")
    some, more = (build(tmp_path, f"keep_ratios: [0.5]\nib_weight: {pair}\n") for pair in ("[1e-2, 1]", "[0.01, 2]"))
    assert without.ib_weights is None
    assert some.ib_weights == IBWeights(low=0.01, high=1.0)
    assert len({space.digest() for space in (without, some, more)}) == 3
    assert without.size == some.size, "a number of schedules"


@pytest.mark.parametrize(("low", "high"), [(0.01, 1.0), (0.5, 0.6), (1e-6, 1e6)])
def test_a_fifth_of_draws_is_zero_the_rest_log_uniform(low: float, high: float) -> None:
    weights = IBWeights(low=low, high=high)
    rng = np.random.default_rng(0)
    numbers = np.array([weights.draw(rng) for _ in range(20_000)])
    assert weights.floor <= numbers.min()
    assert numbers.max() <= high
    effective = np.array([weights.weight(number) for number in numbers])
    assert np.mean(effective == 0) == pytest.approx(0.2, abs=0.01)
    above = effective[effective > 0]
    assert above.min() >= low
    assert np.mean(above < np.sqrt(low * high)) == pytest.approx(0.5, abs=0.02)


def test_ib_weight_zero_and_limits() -> None:
    weights = IBWeights(low=0.01, high=1.0)
    assert weights.weight(weights.zero) == 0
    assert weights.floor < weights.zero < weights.low
    assert weights.weight(np.nextafter(0.01, 0)) == 0
    assert weights.weight(0.01) == 0.01
    assert weights.weight(1.0) == 1.0
    assert weights.weight(weights.floor) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "keep_ratio: [0.5]\n", "mine.yaml:3: unknown setting 'keep_ratio': did you mean keep_ratios"),
        (
            HEAD + "keep_ratios: [0.5, 1.5]\n",
            "mine.yaml:3: keep_ratios.1 must be less than or equal to 1, but got 1.5$",
        ),
        (
            HEAD + "keep_ratios:\n  - 0.7\n  - 0.5\n  - 0\n",
            "mine.yaml:6: keep_ratios.2 must be greater than 0, but got 0$",
        ),
        (HEAD + "keep_ratios: []\n", r"mine.yaml:3: keep_ratios must have at least 1 item .*, but got \[\]"),
        (
            HEAD + "keep_ratios: [0.5]\nlayers:\n  - pattern: a\n    keep_ratios: [0.5, 2]\n",
            "mine.yaml:6: layers.0.keep_ratios.1 must be less than or equal to 1, but got 2$",
        ),
        (
            HEAD + "keep_ratios: [0.5]\nforms: [soft, firm]\n",
            "mine.yaml:4: forms.1 must be 'soft', 'hard', 'matched', 'gradient' or 'select', but got 'firm'",
        ),
        (HEAD + "keep_ratios: [0.5]\nforms: []\n", r"mine.yaml:4: forms must have at least 1 item .*, but got \[\]"),
        (
            HEAD + "keep_ratios: [0.5]\nlayers:\n  - pattern: a\n    keep_ratios: [0.5]\n    forms: [Hard]\n",
            "mine.yaml:7: layers.0.forms.0 must be 'soft', 'hard', 'matched', 'gradient' or 'select', but got 'Hard'",
        ),
        (
            HEAD + "keep_ratios: [0.5]\nlayers: [{pattern: a, keep_ratios: [0.5], form: [hard]}]\n",
            "mine.yaml:4: layers.0: unknown setting 'form': did you mean forms",
        ),
        (
            "schema_version: 9\nfamily: m\nkeep_ratios: [0.5]\n",
            "mine.yaml:1: schema_version must be 1, but got 9",
        ),
        (
            "schema_version: 1\nfamily: swin\nkeep_ratios: [0.5]\n",
            "mine.yaml: family must be that of the backbone, m, but got 'swin'",
        ),
        (HEAD, "mine.yaml: keep_ratios must be given"),
        *(
            (
                HEAD + f"keep_ratios: [0.5]\nib_weight: {wrong}\n",
                r"mine.yaml:4: ib_weight must be \[low, high\] with 1e-6 <= low < high <= 1e6, but got \[",
            )
            for wrong in ("[1.0, 0.01]", "[0, 1]", "[0.1, 0.1]", "[0.1, .inf]", "[.nan, 1]", "[0.1]", "[0.1, 0.2, 0.3]")
        ),
        (HEAD + "keep_ratios: [0.5]\nib_weight: 0.1\n", "mine.yaml:4: ib_weight .* valid tuple, but got 0.1"),
        (HEAD + "keep_ratios: [0.5]\nib_weight: [0.1, much]\n", "mine.yaml:4: ib_weight.1 .* valid number.*'much'"),
        (HEAD + "keep_ratios: [0.5]\nib_weights: [0.1, 1]\n", "mine.yaml:4: unknown .*did you mean ib_weight"),
        ("- a\n- b\n", "must be a mapping"),
        ("a: [1\n", "mine.yaml:2: must be YAML"),
    ],
)
def test_mistakes_in_a_file_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpaceFile.load(write(tmp_path, text), family="m")


def test_a_shipped_space_of_another_family_is_told() -> None:
    with pytest.raises(InputError, match="vit.yaml: family must be that of the backbone, mobilevit, but got 'vit'"):
        SpaceFile.load("vit", family="mobilevit")


def test_a_pattern_without_a_layer_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must match a layer .* got 'blocks.\\*'"):
        build(tmp_path, "keep_ratios: [0.5]\nlayers: [{pattern: 'blocks.*', keep_ratios: [0.5]}]\n")


def test_unknown_files_are_told_with_the_shipped_names() -> None:
    with pytest.raises(InputError, match="did you mean mobilevit"):
        find_file("search_spaces", "mobilvit")
    assert find_file("search_spaces", "search_spaces/mobilevit.yaml").name == "mobilevit.yaml"
