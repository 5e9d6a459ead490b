"""Values that replace some of a recipe's, as on the command line, and the keys that have to follow them."""

import math
from typing import Any

from ltmsearch.config.recipe import Recipe


def override(recipe: Recipe, keys: dict[str, Any]) -> tuple[Recipe, list[str]]:
    """A copy of a recipe with other values for some keys, and notes on the keys that changed with them.

    Keys that are not given and would no longer fit follow in proportion: fewer epochs shorten warm-up, cool-down and
    the epochs after which something happens; a lower learning rate lowers its lower limits; another batch size is
    split into parts that are no larger than before. Keys that still fit stay as they are.

    Raises:
        InputError: For an invalid value, and for given ones that do not fit together.
    """
    following: dict[str, Any] = {}
    notes: list[str] = []
    for given, rule in (("epochs", _fewer_epochs), ("lr", _lower_rate), ("batch_size", _other_batch)):
        value, before = _number(keys.get(given)), getattr(recipe, given)
        found = rule(recipe, keys, value) if value is not None and value > 0 else {}
        if found:
            changes = ", ".join(f"{name} {getattr(recipe, name):g} → {now:g}" for name, now in found.items())
            notes.append(f"to fit {given} {value:g} instead of {before:g}, in proportion: {changes}")
        following |= found
    return recipe.changed({**following, **keys}), notes


def _fewer_epochs(recipe: Recipe, keys: dict[str, Any], epochs: float) -> dict[str, Any]:
    share = epochs / recipe.epochs
    if share >= 1:
        return {}
    found: dict[str, Any] = {}
    ends = ("warmup_epochs", "cooldown_epochs")
    sched = keys.get("sched", recipe.sched)
    # Rounded down: their sum then is below the number of epochs, as it was before.
    if sum(_number(keys.get(name, getattr(recipe, name))) or 0 for name in ends) >= epochs and sched != "constant":
        found |= {name: math.floor(getattr(recipe, name) * share) for name in ends if getattr(recipe, name)}
    if epochs <= recipe.mixup_off_epoch < recipe.epochs:
        found["mixup_off_epoch"] = max(1, math.floor(recipe.mixup_off_epoch * share))  # 0 is never
    if epochs <= recipe.decay_epochs < recipe.epochs and sched == "step":
        found["decay_epochs"] = recipe.decay_epochs * share
    return {name: value for name, value in found.items() if name not in keys}


def _lower_rate(recipe: Recipe, keys: dict[str, Any], lr: float) -> dict[str, Any]:
    rates = {name: getattr(recipe, name) for name in ("min_lr", "warmup_lr") if name not in keys}
    return {name: rate * lr / recipe.lr for name, rate in rates.items() if lr < rate <= recipe.lr}


def _other_batch(recipe: Recipe, keys: dict[str, Any], batch: float) -> dict[str, Any]:
    size, parts = int(batch), recipe.grad_accum_steps
    if "grad_accum_steps" in keys or size != batch or size % parts == 0:
        return {}
    least = math.ceil(size * parts / recipe.batch_size)
    return {"grad_accum_steps": next(number for number in range(least, size + 1) if size % number == 0)}


def _number(value: Any) -> float | None:
    """A value from Python or as text; None for what the recipe will refuse."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
