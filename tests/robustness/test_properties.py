"""Properties of files, schedules and spaces: valid content survives writing and reading."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.fuzzing import anything
from support.layers import FakeLayers

from ltmsearch.config.continuation import refuse_other_settings
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.errors import InputError, printable
from ltmsearch.io.files import parse_json
from ltmsearch.io.yaml_models import read_yaml, to_yaml
from ltmsearch.merging import LearnableTokenMerging
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Choice, Form, MergeSchedule
from ltmsearch.schedules.space import IBWeights, SearchSpace, layer_choices
from ltmsearch.schedules.space_file import SpaceFile

seeded = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

LAYERS = ("blocks.0", "blocks.1", "stages.2.1.transformer.0", "stages.2.1.transformer.1")
GRIDS: dict[str, Grid] = {"blocks.0": (14, 14), "blocks.1": (7, 7), LAYERS[2]: (3, 5), LAYERS[3]: (1, 1)}

ratios = st.floats(min_value=0, max_value=1, exclude_min=True)
counts = st.integers(min_value=-(2**40), max_value=-1)
forms = st.sampled_from(("soft", "hard", "matched", "gradient"))
positive = st.floats(min_value=1e-9, max_value=1e9)
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
"""Values of JSON."""


@st.composite
def schedules(draw: st.DrawFn) -> MergeSchedule:
    layers = draw(st.lists(st.sampled_from(LAYERS), unique=True))
    kept: dict[str, float] = {layer: draw(ratios | counts) for layer in layers}
    of: dict[str, Form] = {layer: draw(forms) for layer in layers if draw(st.booleans())}
    return MergeSchedule(keep_ratios=kept, operator=draw(st.sampled_from(("ltm", "tome", "pool"))), forms=of)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    schedule, lr = draw(schedules()), draw(st.floats(1e-6, 10))
    low, high = sorted((draw(st.floats(0.01, 3)), draw(st.floats(0.01, 3))))
    epochs = draw(st.integers(1, 1000))
    return Recipe(
        model="ltm_" + draw(st.from_regex(r"[a-z0-9_.]{1,20}", fullmatch=True)),
        operator=schedule.operator,
        schedule=dict(schedule.keep_ratios),
        forms=dict(schedule.forms),
        num_classes=draw(st.integers(2, 30000)),
        img_size=draw(st.integers(32, 2048)),
        epochs=epochs,
        warmup_epochs=draw(st.integers(0, epochs - 1)),
        lr=lr,
        min_lr=draw(st.floats(0, lr)),
        aa=draw(st.none() | text),
        ratio=(low, high),
        clip_grad=draw(st.none() | positive),
        drop_path=draw(st.none() | st.floats(0, 1, exclude_max=True)),
        model_ema=draw(st.booleans()),
        provenance=draw(st.dictionaries(text, plain, max_size=4)),
    )


@st.composite
def study_settings(draw: st.DrawFn) -> StudySettings:
    start = draw(st.sampled_from(("pretrained", "checkpoint", "resume_from", None)))
    budget = draw(st.floats(1e-3, 1e3))
    data_dir = draw(st.none() | text.filter(bool))
    return StudySettings.make(
        backbone=draw(text),
        budget_gflops=budget,
        lowest_gflops=draw(st.none() | st.just(budget / 2)),
        budget_ms=draw(st.none() | positive),
        img_size=draw(st.integers(32, 2048)),
        trials=draw(st.integers(1, 10**6)),
        seed=draw(st.integers(0, 2**31 - 1)),
        update_share=draw(st.floats(0, 1)),
        space=draw(st.none() | text),
        data_dir=data_dir,
        study=draw(st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        out=draw(st.none() | text),
        **({} if start is None else {start: True if start == "pretrained" else draw(text)}),
    )


@st.composite
def space_files(draw: st.DrawFn) -> SpaceFile:
    some_ratios = st.lists(ratios, min_size=1, max_size=5)
    some_forms, some_counts = st.lists(forms, min_size=1, max_size=3), st.lists(counts, max_size=3)
    rule = st.fixed_dictionaries(
        {"pattern": st.sampled_from((*LAYERS, "*", "blocks.*", "stages.?.*")), "keep_ratios": some_ratios},
        optional={"forms": some_forms, "keep_counts": some_counts},
    )
    low, high = sorted((draw(st.floats(1e-6, 1e6)), draw(st.floats(1e-6, 1e6))))
    content = {
        "schema_version": 1, "family": "vit", "keep_ratios": draw(some_ratios), "keep_counts": draw(some_counts),
        "forms": draw(some_forms),
        "layers": draw(st.lists(rule, max_size=3)), "ib_weight": [low, high] if low < high else None,
    }  # fmt: skip
    return SpaceFile.model_validate(content)


class TestRoundTrips:
    @seeded
    @given(content=st.dictionaries(text, plain, max_size=5), header=st.text("abc \n#:é"))
    def test_yaml(self, tmp_path: Path, content: dict[str, Any], header: str) -> None:
        (tmp_path / "a.yaml").write_text(to_yaml(content, header), encoding="utf-8", newline="")
        assert read_yaml(tmp_path / "a.yaml") == content

    @seeded
    @given(recipe=recipes())
    def test_recipes(self, tmp_path: Path, recipe: Recipe) -> None:
        again = load_recipe(recipe.save(tmp_path / "a.yaml"))
        assert again == recipe
        assert again.schedule == recipe.schedule
        assert again.changed({}) == recipe

    @seeded
    @given(given=study_settings())
    def test_settings(self, tmp_path: Path, given: StudySettings) -> None:
        assume(given.study is not None or "\0" not in given.study_name)
        resolved = given.resolved("cpu")
        (tmp_path / "settings.yaml").write_text(resolved.to_yaml(), encoding="utf-8", newline="")
        again = ResolvedSettings.load(tmp_path / "settings.yaml")
        assert again == resolved
        refuse_other_settings(again, resolved, tmp_path)

    @seeded
    @given(file=space_files())
    def test_spaces(self, tmp_path: Path, file: SpaceFile) -> None:
        (tmp_path / "a.yaml").write_text(to_yaml(file.model_dump(mode="json"), ""), encoding="utf-8")
        assert SpaceFile.load(str(tmp_path / "a.yaml"), family="vit") == file

    @seeded
    @given(content=plain)
    def test_json(self, content: Any) -> None:
        assert parse_json(json.dumps(content)) == content
        assert parse_json(json.dumps(content, ensure_ascii=False)) == content


class TestSchedules:
    @seeded
    @given(one=schedules(), rng=st.randoms(use_true_random=False))
    def test_the_order_of_layers_does_not_matter(self, one: MergeSchedule, rng: Any) -> None:
        layers = list(one.keep_ratios)
        rng.shuffle(layers)
        other = MergeSchedule(
            keep_ratios={layer: one.keep_ratios[layer] for layer in layers}, operator=one.operator, forms=one.forms
        )
        assert other == one
        assert hash(other) == hash(one)

    @seeded
    @given(one=schedules())
    def test_only_merging_layers_have_a_form(self, one: MergeSchedule) -> None:
        assert set(one.forms) <= set(one.merging_layers)
        assert all(one.keep_ratio(layer) < 1 for layer in one.merging_layers)

    @seeded
    @given(
        layers=st.lists(st.text(), unique=True, max_size=5), patterns=st.dictionaries(st.text(), anything, max_size=4)
    )
    def test_any_patterns_give_a_schedule_or_an_error(self, layers: list[str], patterns: dict[str, Any]) -> None:
        with suppress(InputError):
            assert set(MergeSchedule.from_mapping(layers, patterns).keep_ratios) == set(layers)


class TestSpaces:
    @seeded
    @given(file=space_files(), operator=st.sampled_from(("ltm", "tome", "pool")))
    def test_choices_differ_and_begin_with_the_plain_layer(self, file: SpaceFile, operator: str) -> None:
        layers = FakeLayers(layer_grids=GRIDS, operator=operator)
        for layer in GRIDS:
            choices = layer_choices(layers, layer, file.choices_of(layer, operator))
            assert choices[0] == Choice(1.0)
            targets = [layers.target(layer, choice) for choice in choices]
            assert len({(target, c.form) for target, c in zip(targets, choices, strict=True)}) == len(choices)
            kept = [tokens(target) for target in targets]
            assert kept == sorted(kept, reverse=True)
            assert kept.count(kept[0]) == 1, "the others merge"

    @seeded
    @given(file=space_files(), data=st.data())
    def test_a_point_and_its_schedule_convert(self, file: SpaceFile, data: st.DataObject) -> None:
        space = SearchSpace.build(file, FakeLayers(layer_grids=GRIDS))
        point = [data.draw(st.integers(0, len(options) - 1)) for options in space.choices]
        assert space.indices(space.schedule(point)).tolist() == point
        assert space.size == math.prod(map(len, space.choices))
        assert SearchSpace.build(file, FakeLayers(layer_grids=GRIDS)).digest() == space.digest()

    @seeded
    @given(file=space_files(), data=st.data())
    def test_every_schedule_of_a_space_can_be_built(self, file: SpaceFile, data: st.DataObject) -> None:
        """No merge by place behind one that has left the grid, or the space is refused."""
        layers = FakeLayers(layer_grids=dict.fromkeys(LAYERS, (7, 7)), chained=(LAYERS[:2], LAYERS[2:]))
        space = None
        with suppress(InputError):
            space = SearchSpace.build(file, layers)
        assume(space is not None)
        assert space is not None
        schedule = space.schedule([data.draw(st.integers(0, len(options) - 1)) for options in space.choices])
        for sequence in layers.chained:
            grid: Grid = (7, 7)
            for layer in sequence:
                if schedule.keep_ratio(layer) != 1:
                    form = schedule.form(layer) or "soft"
                    grid = LearnableTokenMerging.target(grid, schedule.keep_ratio(layer), form)

    @seeded
    @given(ends=st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)), share=st.floats(0, 1))
    def test_ib_weights_stay_between_their_ends(self, ends: tuple[float, float], share: float) -> None:
        low, high = sorted(ends)
        assume(low < high)
        weights = IBWeights(low=low, high=high)
        assert 0 < weights.floor <= weights.zero <= low
        number = weights.floor + share * (high - weights.floor)
        assert weights.weight(min(number, high)) == 0 or low <= weights.weight(min(number, high)) <= high


class TestAnyText:
    @seeded
    @given(content=st.text(max_size=100))
    def test_any_json(self, content: str) -> None:
        with suppress(ValueError):
            json.dumps(parse_json(content), ensure_ascii=False).encode()

    @seeded
    @given(message=st.text())
    def test_any_message_is_one_printable_line(self, message: str) -> None:
        assert str(InputError(message)).isprintable()
        assert printable(printable(message)) == printable(message)
        str(InputError(message)).encode()
