"""Published results of earlier versions, with the names that the scripts have now."""

from typing import Any


def cluster_results(published: dict[str, Any]) -> dict[str, Any]:
    """`cluster.json`, as `cluster_throughput.py` writes it."""
    runs = []
    for sampler in ("random", "tpe"):
        for run in sorted(published[sampler].values(), key=lambda run: run["workers"]):
            busy = {"driver_busy": run["load"], "workers_busy": run["busy"]}
            runs.append({"sampler": sampler, **run, **busy})
    return {"charges": published["constants"]["charges"], "durations": published["durations"], "runs": runs}


def scaling_results(published: dict[str, Any]) -> dict[str, Any]:
    """`scaling.json`, as `trial_cost.py` writes it, with the samplers of `study_growth.py`."""

    def by_processor(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [point | {"seconds": point["processor_seconds"]} for point in points]

    samplers = {
        sampler: {number: mark | {"seconds": mark["processor_seconds"]} for number, mark in found["marks"].items()}
        for sampler, found in published["trials"].items()
    }
    return {
        "image size": by_processor(published["images"]),
        "batch size": by_processor(published["batch"]),
        "network": by_processor(published["layers"]["backbones"]),
        "depth": published["layers"]["deep"],
        "samplers": samplers,
    }
