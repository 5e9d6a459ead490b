"""Which runtime to take for a recipe's network: it and the unmerged network are timed in each that this machine has."""

from collections.abc import Mapping
from math import hypot
from pathlib import Path
from typing import Any, get_args

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.names import Engine
from ltmsearch.errors import InputError, LtmsearchError, is_out_of_memory, shortened
from ltmsearch.latency.command import profile_recipe
from ltmsearch.latency.measurement import Measurement
from ltmsearch.latency.target import LatencyTarget

CLEAR = 2.0
"""Standard errors by which a difference of two latencies must exceed zero."""
Readings = Mapping[str, tuple[Measurement, Measurement]]
"""Runtime → latencies of the unmerged and of the merged network."""


def profile_in_every_runtime(
    path: Path, target_options: Mapping[str, Any], callbacks: Callbacks | None = None
) -> tuple[dict[str, LatencyTarget], dict[str, Any]]:
    """Time a recipe's network and the plain one in each runtime of this machine.

    Args:
        path: Recipe file.
        target_options: Arguments of `LatencyTarget.local`, without `runtime`.
        callbacks: Receives progress, and a note for each runtime that this machine cannot use.

    Returns:
        Runtime → target, and a record for JSON: runtime → record of `profile_recipe`, what was skipped and why, and the
        recommendation.

    Raises:
        InputError: If the recipe is missing or damaged, or the options suit no runtime.
    """
    callbacks = callbacks or Callbacks()
    targets: dict[str, LatencyTarget] = {}
    records: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for runtime in get_args(Engine):
        callbacks.note(f"timing in {runtime}")
        try:
            targets[runtime], records[runtime] = profile_recipe(path, {**target_options, "runtime": runtime}, callbacks)
        except (LtmsearchError, RuntimeError) as error:
            # torch has no needs of its own, so what fails there is wrong input; others may lack a library or compiler.
            if runtime == "torch" or is_out_of_memory(error):
                raise
            skipped[runtime] = _in_one_line(error)
            callbacks.note(f"{runtime} skipped: {skipped[runtime]}")
    readings = {runtime: _readings(record) for runtime, record in records.items()}
    return targets, {"runtimes": records, "skipped": skipped, "recommendation": recommend(readings)}


def _in_one_line(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    return shortened(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", 120)


def _readings(record: Mapping[str, Any]) -> tuple[Measurement, Measurement]:
    plain, merged = (Measurement.model_validate(net["reading"]) for net in record["nets"].values())
    return plain, merged


def recommend(readings: Readings) -> str:
    """Name the runtime in which the merged network is fastest, and tell whether merging saves time at all.

    Of runtimes that are not told apart the first is named: torch needs no compilation and no other file.
    """
    least = min((merged for _, merged in readings.values()), key=lambda one: one.ms)
    level = [runtime for runtime, (_, merged) in readings.items() if not _slower(merged, least)]
    taken, others = level[0], level[1:]
    merged = readings[taken][1]
    unmerged_in = min(readings, key=lambda runtime: readings[runtime][0].ms)
    unmerged = readings[unmerged_in][0]
    saved = 1 - merged.ms / unmerged.ms
    # Within one runtime samples of both take turns, and the error is that of their ratio.
    drift = 0.0 if unmerged_in == taken else unmerged.error
    error = (1 - saved) * hypot(merged.error, drift)
    tie = f" (not told apart from {' and '.join(others)})" if others else ""
    where = f"the unmerged network takes {unmerged.ms:.2f} ms in {unmerged_in}"
    unstable = any(not one.stable for pair in readings.values() for one in pair)
    return " ".join((
        f"Run the merged network in {taken}{tie}: {merged.ms:.2f} ms a batch.",
        f"Merging saves {100 * saved:.0f} %: {where}, its fastest."
        if saved > CLEAR * error
        else f"Merging {'costs time' if saved < -CLEAR * error else 'is not shown to save time'}: {where}, its "
        "fastest. Try larger batches, or search under a latency budget: ltmsearch run --budget-ms.",
        *(["Some latencies are unstable: measure again on a machine with less load."] if unstable else []),
    ))  # fmt: skip


def _slower(one: Measurement, other: Measurement) -> bool:
    return one.ms - other.ms > CLEAR * hypot(one.ms * one.error, other.ms * other.error)
