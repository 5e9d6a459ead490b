"""Schedules: one and the same inside, whatever the spelling at the door."""

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import Choice, MergeSchedule

RULE = r"keep ratios must be in \(0, 1\], or negative integers \(tokens to remove\)"
LAYERS = ("stages.2.0", "stages.2.1", "stages.3.0")


def test_equal_schedules_are_equal_and_hash_alike() -> None:
    one = MergeSchedule(keep_ratios={"a": 0.5, "b": 1})
    other = MergeSchedule(keep_ratios={"b": 1.0, "a": 0.5})
    assert one == other
    assert hash(one) == hash(other)
    assert one != MergeSchedule(keep_ratios={"a": 0.5, "b": 1.0}, operator="tome")
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_schedule_does_not_change_with_its_source() -> None:
    source, forms = {"a": 0.5}, {"a": "hard"}
    schedule = MergeSchedule(keep_ratios=source, forms=forms)  # type: ignore[arg-type]
    source["a"], forms["a"] = 0.1, "soft"
    assert schedule.keep_ratio("a") == 0.5
    assert schedule.form("a") == "hard"
    assert schedule.keep_ratio("unnamed") == 1.0
    with pytest.raises(TypeError):
        schedule.keep_ratios["a"] = 0.2  # type: ignore[index]


def test_lists_and_patterns_become_one_spelling() -> None:
    assert dict(MergeSchedule.from_list(LAYERS, [0.7]).keep_ratios) == dict.fromkeys(LAYERS, 0.7)
    listed = MergeSchedule.from_list(LAYERS, [0.7, 1, 0.5])
    assert listed == MergeSchedule.from_mapping(LAYERS, {"stages.2.0": 0.7, "stages.3.*": 0.5})
    assert listed.merging_layers == ("stages.2.0", "stages.3.0")
    # Later entries win.
    later = MergeSchedule.from_mapping(LAYERS, {"*": 0.5, "stages.2.1": 1.0})
    assert later.merging_layers == ("stages.2.0", "stages.3.0")


@pytest.mark.parametrize("ratio", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2), np.float16(0.5)])
def test_one_number_is_for_all_layers(ratio: Any) -> None:
    half = MergeSchedule.uniform(LAYERS, 0.5, form="hard")
    assert MergeSchedule.from_mapping(LAYERS, ratio, forms="hard") == half
    assert MergeSchedule.from_list(LAYERS, ratio, form="hard") == half
    assert MergeSchedule.uniform(LAYERS, ratio, form="hard") == half
    schedule = MergeSchedule(keep_ratios=dict.fromkeys(LAYERS, ratio))
    assert {type(number) for number in schedule.keep_ratios.values()} == {float}
    assert MergeSchedule.from_mapping(LAYERS, np.int64(1)) == MergeSchedule.uniform(LAYERS, 1)


@pytest.mark.parametrize(
    "ratio", [0, -1.5, -0.1, 1.01, 2, -float("inf"), 10**400, float("nan"), float("inf"), np.float32("nan")]
)
def test_one_number_out_of_range_is_refused(ratio: Any) -> None:
    for make in (MergeSchedule.from_mapping, MergeSchedule.from_list, MergeSchedule.uniform):
        with pytest.raises(InputError, match=f"^{RULE}, but (every|layer) \\S+ has "):
            make(LAYERS, ratio)


@pytest.mark.parametrize("given", [[0.5], (0.5,), "0.5", True, np.bool_(True), None, np.array([0.5]), {0.5}])
def test_what_is_no_mapping_is_refused(given: Any) -> None:
    with pytest.raises(InputError) as caught:
        MergeSchedule.from_mapping(LAYERS, given)
    assert str(caught.value) == (
        "keep ratios must be given by layer, as in {'blocks.1': …}, or be one number for all layers, but got "
        f"{given!r}"
    )
    with pytest.raises(InputError, match="keep ratios must be given by layer"):
        MergeSchedule(keep_ratios=given)
    with pytest.raises(InputError, match="forms must be given by layer"):
        MergeSchedule.from_mapping(LAYERS, 0.5, forms=3)
    with pytest.raises(InputError, match="forms must be given by layer"):
        MergeSchedule(keep_ratios={}, forms=given)


@pytest.mark.parametrize("given", ["0.5", {"a": 0.5}, None, True])
def test_what_is_no_list_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="keep ratios must be a list of numbers or one number, but got "):
        MergeSchedule.from_list(LAYERS, given)


def test_names_are_text() -> None:
    with pytest.raises(InputError, match="keep ratios must be given by the names of layers, but got 3"):
        MergeSchedule(keep_ratios={3: 0.5})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="the operator of a schedule must be a name, but got 3"):
        MergeSchedule(keep_ratios={}, operator=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan"), True, "0.5", None, np.bool_(True), [0.5]])
def test_ratios_out_of_range_are_refused(ratio: object) -> None:
    with pytest.raises(InputError, match=f"{RULE}, but layer a has"):
        MergeSchedule(keep_ratios={"a": ratio})  # type: ignore[dict-item]


def test_wrong_numbers_and_names_are_told() -> None:
    with pytest.raises(InputError, match="got 2 for 3 layers"):
        MergeSchedule.from_list(LAYERS, [0.5, 0.5])
    with pytest.raises(InputError, match="did you mean stages.3.0"):
        MergeSchedule.from_mapping(LAYERS, {"stages.3.00": 0.5})


def test_plain_layers_have_no_form() -> None:
    hard = MergeSchedule(keep_ratios={"a": 0.5, "b": 1, "c": 0.7}, forms={"a": "hard", "b": "hard", "unnamed": "soft"})
    assert dict(hard.forms) == {"a": "hard"}
    assert [hard.form(layer) for layer in "abc"] == ["hard", None, None]
    assert hard == MergeSchedule(keep_ratios={"a": 0.5, "b": 1, "c": 0.7}, forms={"a": "hard"})
    assert MergeSchedule.uniform("ab", 1.0, form="hard") == MergeSchedule.uniform("ab", 1.0)


def test_forms_tell_schedules_apart_whatever_their_order() -> None:
    ratios = {"a": 0.5, "b": 0.5}
    one = MergeSchedule(keep_ratios=ratios, forms={"a": "hard", "b": "soft"})
    other = MergeSchedule(keep_ratios=ratios, forms={"b": "soft", "a": "hard"})
    assert one == other
    assert hash(one) == hash(other)
    swapped = MergeSchedule(keep_ratios=ratios, forms={"a": "soft", "b": "hard"})
    assert len({one, other, swapped, MergeSchedule(keep_ratios=ratios)}) == 3
    copied = pickle.loads(pickle.dumps(one))
    assert copied == one
    assert hash(copied) == hash(one)
    with pytest.raises(TypeError):
        copied.forms["a"] = "soft"


def test_forms_by_name_and_pattern() -> None:
    half = {"*": 0.5}
    schedule = MergeSchedule.from_mapping(LAYERS, half, forms={"stages.2.*": "hard"})
    assert dict(schedule.forms) == {"stages.2.0": "hard", "stages.2.1": "hard"}
    later = MergeSchedule.from_mapping(LAYERS, half, forms={"*": "hard", "stages.2.1": "soft"})
    assert dict(later.forms) == {"stages.2.0": "hard", "stages.2.1": "soft", "stages.3.0": "hard"}
    everywhere = MergeSchedule.from_mapping(LAYERS, half, forms={"*": "hard"})
    assert everywhere == MergeSchedule.from_list(LAYERS, [0.5], form="hard")
    assert everywhere == MergeSchedule.from_list(LAYERS, [0.5, 0.5, 0.5], form="hard")
    assert everywhere == MergeSchedule.uniform(LAYERS, 0.5, form="hard")
    with pytest.raises(InputError, match="unknown layer 'stages.3.00': did you mean stages.3.0"):
        MergeSchedule.from_mapping(LAYERS, half, forms={"stages.3.00": "hard"})


@pytest.mark.parametrize("form", ["firm", "Hard", "", None, True, ["hard"]])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_forms_that_are_none_are_refused(form: object, ratio: float) -> None:
    with pytest.raises(InputError, match="layer a must be soft, hard, matched, gradient, select, but got ") as caught:
        MergeSchedule(keep_ratios={"a": ratio}, forms={"a": form})  # type: ignore[dict-item]
    assert f"but got {form!r}" in str(caught.value)


def test_a_negative_integer_is_a_number_of_tokens_to_remove() -> None:
    schedule = MergeSchedule.from_mapping(LAYERS, {"stages.2.*": -8, "stages.3.0": np.int64(-16)}, forms="matched")
    assert dict(schedule.keep_ratios) == {"stages.2.0": -8.0, "stages.2.1": -8.0, "stages.3.0": -16.0}
    assert schedule.merging_layers == LAYERS
    assert set(schedule.forms) == set(LAYERS)
    assert MergeSchedule.from_list(LAYERS, -8) == MergeSchedule.uniform(LAYERS, -8.0)


def test_choices_read_well() -> None:
    choices = (Choice(1.0), Choice(0.35, "hard"), Choice(-8.0, "matched"))
    assert [str(choice) for choice in choices] == ["1", "0.35 hard", "-8 matched"]
