"""Schedules: one form inside, whatever the spelling at the door."""

import pickle

import pytest

from ltmsearch.errors import InputError
from ltmsearch.schedule import MergeSchedule

LAYERS = ("stages.2.0", "stages.2.1", "stages.3.0")


def test_equal_schedules_are_equal_and_hash_alike() -> None:
    one = MergeSchedule(keep_ratios={"a": 0.5, "b": 1})
    other = MergeSchedule(keep_ratios={"b": 1.0, "a": 0.5})
    assert one == other
    assert hash(one) == hash(other)
    assert one != MergeSchedule(keep_ratios={"a": 0.5, "b": 1.0}, operator="tome")
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_schedule_does_not_change_with_its_source() -> None:
    source = {"a": 0.5}
    schedule = MergeSchedule(keep_ratios=source)
    source["a"] = 0.1
    assert schedule.keep_ratio("a") == 0.5
    assert schedule.keep_ratio("unnamed") == 1.0
    with pytest.raises(TypeError):
        schedule.keep_ratios["a"] = 0.2  # type: ignore[index]


def test_lists_and_patterns_become_one_form() -> None:
    assert dict(MergeSchedule.from_list(LAYERS, [0.7]).keep_ratios) == dict.fromkeys(LAYERS, 0.7)
    listed = MergeSchedule.from_list(LAYERS, [0.7, 1, 0.5])
    assert listed == MergeSchedule.from_mapping(LAYERS, {"stages.2.0": 0.7, "stages.3.*": 0.5})
    assert listed.merging_layers == ("stages.2.0", "stages.3.0")
    # Later entries win.
    later = MergeSchedule.from_mapping(LAYERS, {"*": 0.5, "stages.2.1": 1.0})
    assert later.merging_layers == ("stages.2.0", "stages.3.0")


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan"), True, "0.5", None])
def test_ratios_out_of_range_are_refused(ratio: object) -> None:
    with pytest.raises(InputError, match=r"must be in \(0, 1\], but layer a has"):
        MergeSchedule(keep_ratios={"a": ratio})  # type: ignore[dict-item]


def test_wrong_numbers_and_names_are_told() -> None:
    with pytest.raises(InputError, match="got 2 for 3 layers"):
        MergeSchedule.from_list(LAYERS, [0.5, 0.5])
    with pytest.raises(InputError, match="did you mean stages.3.0"):
        MergeSchedule.from_mapping(LAYERS, {"stages.3.00": 0.5})
