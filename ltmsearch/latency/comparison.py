"""Which runtime to take for a recipe's network: each that this machine has is timed, with the unmerged network it."""

from collections.abc import Mapping
from math import hypot
from pathlib import Path
from typing import Any, get_args

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.names import Engine
from ltmsearch.errors import InputError
from ltmsearch.latency.command import profile_recipe
from ltmsearch.latency.measurement import Measurement
from ltmsearch.latency.target import LatencyTarget

CLEAR = 2.0
"""Standard errors by which a difference of two latencies must exceed zero."""


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
        InputError: If the recipe is missing or damaged, or this machine supports no runtime with these options.
    """
    callbacks = callbacks or Callbacks()
    targets: dict[str, LatencyTarget] = {}
    records: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for runtime in get_args(Engine):
        try:
            LatencyTarget.local(**{**target_options, "runtime": runtime})
        except InputError as error:
            if runtime == "torch":  # which has no needs of its own: the options are wrong
                raise
            skipped[runtime] = str(error)
            callbacks.note(f"{runtime} skipped: {error}")
            continue
        targets[runtime], records[runtime] = profile_recipe(path, {**target_options, "runtime": runtime}, callbacks)
    readings = {runtime: _readings(record) for runtime, record in records.items()}
    return targets, {"runtimes": records, "skipped": skipped, "recommendation": recommend(readings)}


def _readings(record: Mapping[str, Any]) -> tuple[Measurement, Measurement]:
    plain, merged = (Measurement.model_validate(net["reading"]) for net in record["nets"].values())
    return plain, merged


def recommend(readings: Mapping[str, tuple[Measurement, Measurement]]) -> str:
    """Name the runtime in which the merged network is fastest, and tell whether merging saves time at all.

    Args:
        readings: Runtime → latencies of the unmerged and of the merged network.
    """
    fastest = min(readings, key=lambda runtime: readings[runtime][1].ms)
    merged = readings[fastest][1]
    unmerged_in = min(readings, key=lambda runtime: readings[runtime][0].ms)
    unmerged = readings[unmerged_in][0]
    saved, error = unmerged.ms - merged.ms, hypot(unmerged.ms * unmerged.error, merged.ms * merged.error)
    if saved > CLEAR * error:
        return (
            f"Take {fastest}: the merged network takes {merged.ms:.2f} ms, {merged.ms / unmerged.ms:.2f} of the "
            f"unmerged one's least time, {unmerged.ms:.2f} ms in {unmerged_in}."
        )
    return (
        f"Merging is not shown to save time at this batch size: the merged network takes at least {merged.ms:.2f} ms, "
        f"in {fastest}, the unmerged one {unmerged.ms:.2f} ms, in {unmerged_in}. Try larger batches, or search with "
        "--budget-ms."
    )
