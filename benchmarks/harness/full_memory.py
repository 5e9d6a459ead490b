"""A trial whose batch does not fit into the memory of a GPU."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import Evaluator, parameters


def full_memory(options: dict[str, Any]) -> dict[str, Any]:
    """One trial with all memory, and one with too little for its batch, in a process of its own."""
    device = torch.device(options["device"])
    with tempfile.TemporaryDirectory() as scratch:
        settings = StudySettings.make("gpu", **options | {"proxy_steps": 1, "out": str(Path(scratch, "run"))})
        context = prepare(settings, Callbacks())
        evaluator, plain = context.evaluator, MergeSchedule.uniform(context.space.layers, 1.0)
        weights = parameters(evaluator.supernet)

        def run(evaluator: Evaluator) -> tuple[float, int | None]:
            """Peak of the memory, and the batch size if it was halved."""
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            result = evaluator.evaluate(weights, plain, seed=0, steps=1)
            return torch.cuda.max_memory_allocated(device), result.batch_size

        batch = context.settings.batch_size
        smaller = replace(evaluator, settings=context.settings.model_copy(update={"batch_size": batch // 2}))
        (half, _), (whole, unchanged) = run(smaller), run(evaluator)
        assert unchanged is None, "the batch must fit into all memory"
        torch.cuda.set_device(torch.device(device.type, device.index or 0))
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((half + whole) / 2 / total)
        used = run(evaluator)[1]
    assert used == batch // 2, f"with memory between that of {batch // 2} and of {batch} images the batch was {used}"
    return {"batch": batch, "mib": whole / 2**20, "mib_of_half": half / 2**20, "batch_with_less": used}
