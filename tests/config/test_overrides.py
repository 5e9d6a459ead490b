"""Values that replace a recipe's: other keys follow where they would not fit."""

from typing import Any

import pytest

from ltmsearch.config.overrides import override
from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import InputError


def recipe(**changes: Any) -> Recipe:
    return Recipe(
        model="ltm_mobilevit_xxs",
        schedule={},
        operator="ltm",
        img_size=224,
        num_classes=10,
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("before", "keys", "after", "note"),
    [
        (
            {},
            {"epochs": "2"},
            {"warmup_epochs": 0},
            "to fit epochs 2 instead of 300, in proportion: warmup_epochs 5 → 0",
        ),
        (
            {"warmup_epochs": 20, "cooldown_epochs": 10},
            {"epochs": 30},
            {"warmup_epochs": 2, "cooldown_epochs": 1},
            "to fit epochs 30 instead of 300, in proportion: warmup_epochs 20 → 2, cooldown_epochs 10 → 1",
        ),
        # Two thirds of five would be rounded to more than fits.
        ({"epochs": 6}, {"epochs": "2"}, {"warmup_epochs": 1}, "to fit epochs 2 instead of 6, in proportion: "),
        ({"cooldown_epochs": 9}, {"epochs": 3, "cooldown_epochs": "1"}, {"warmup_epochs": 0, "cooldown_epochs": 1}, ""),
        (
            {"mixup_off_epoch": 200, "sched": "step", "warmup_epochs": 0},
            {"epochs": "30"},
            {"mixup_off_epoch": 20, "decay_epochs": 9.0},
            "to fit epochs 30 instead of 300, in proportion: mixup_off_epoch 200 → 20, decay_epochs 90 → 9",
        ),
        ({"mixup_off_epoch": 20}, {"epochs": "10"}, {"mixup_off_epoch": 1, "warmup_epochs": 5}, ""),
        (
            {},
            {"lr": "2e-6"},
            {"min_lr": pytest.approx(2e-7), "warmup_lr": pytest.approx(1e-7)},
            "to fit lr 2e-06 instead of 0.0002, in proportion: min_lr 2e-05 → 2e-07, warmup_lr 1e-05 → 1e-07",
        ),
        (
            {"grad_accum_steps": 4},
            {"batch_size": "30"},
            {"grad_accum_steps": 1},
            "to fit batch_size 30 instead of 256, in proportion: grad_accum_steps 4 → 1",
        ),
        ({"grad_accum_steps": 8}, {"batch_size": "150"}, {"grad_accum_steps": 5}, ""),  # parts of 30, at most 32
    ],
)  # fmt: skip
def test_what_no_longer_fits_follows_in_proportion(
    before: dict[str, Any], keys: dict[str, Any], after: dict[str, Any], note: str
) -> None:
    changed, notes = override(recipe(**before), keys)
    assert {name: getattr(changed, name) for name in after} == after
    assert len(notes) == 1
    assert notes[0].startswith(note)
    others = Recipe.model_fields.keys() - after.keys() - keys.keys()
    assert [name for name in others if getattr(changed, name) != getattr(recipe(**before), name)] == []


@pytest.mark.parametrize(
    ("before", "keys"),
    [
        ({}, {"epochs": "6"}),  # five still fit
        ({}, {"epochs": "600"}),
        ({"decay_epochs": 90}, {"epochs": "30"}),  # not used by a cosine
        ({"mixup_off_epoch": 400}, {"epochs": "30"}),  # never off before either
        ({"sched": "constant"}, {"epochs": "2"}),
        ({}, {"lr": "1e-3"}),
        ({"warmup_lr": 1e-3}, {"lr": "1e-4"}),  # above the peak before, too
        ({"grad_accum_steps": 4}, {"batch_size": "32"}),
        ({"grad_accum_steps": 4}, {"batch_size": "30", "grad_accum_steps": "3"}),
    ],
)
def test_what_still_fits_stays(before: dict[str, Any], keys: dict[str, Any]) -> None:
    changed, notes = override(recipe(**before), keys)
    assert notes == []
    assert changed == recipe(**before).changed(keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": "2", "warmup_epochs": "5"}, r"must be less than epochs, but got 5 \+ 0 and 2"),
        ({"epochs": "2", "cooldown_epochs": "2"}, r"must be less than epochs, but got 0 \+ 2 and 2"),
        ({"epochs": "two"}, "epochs must be a valid integer, but got 'two'"),
        ({"epochs": "nan"}, "epochs must be a valid integer, but got 'nan'"),
        ({"epochs": "-3"}, "epochs must be greater than or equal to 1, but got '-3'"),
        ({"lr": "inf"}, "lr must be a finite number, but got 'inf'"),
        ({"lr": "1e-6", "min_lr": "1e-5"}, "min_lr must be at most lr, but got 1e-05 and 1e-06"),
        ({"batch_size": "7.5"}, "batch_size must be a valid integer, but got '7.5'"),
    ],
)
def test_given_values_are_refused_as_before(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(recipe(), keys)
