"""Rules about several settings of a study."""

from typing import Any

from ltmsearch.config.network import check_channels, check_readout
from ltmsearch.schedules.schedule import THRESHOLDS


def check_combinations(settings: Any) -> None:
    """Raise ValueError for settings that exclude each other or need others."""
    check_channels(settings)
    check_readout(settings.readout, settings.registers)
    starts = [name for name in ("pretrained", "checkpoint", "resume_from") if getattr(settings, name)]
    if len(starts) > 1:
        raise ValueError(f"{starts[0]} and {starts[1]} cannot both be given")
    if settings.head == "probe" and not starts:
        raise ValueError("head 'probe' needs trained weights: give pretrained, checkpoint or resume_from too")
    if settings.lowest_gflops is not None and not settings.lowest_gflops < (settings.budget_gflops or 0):
        raise ValueError(
            "a range of budgets must be LOW-HIGH with LOW < HIGH, such as 1.1-1.4, but got "
            f"{settings.lowest_gflops:g}-{settings.budget_gflops or 0:g}"
        )
    if settings.gpus_per_worker is not None and settings.workers == 1 and settings.ray_address is None:
        raise ValueError("gpus_per_worker needs workers on Ray: set workers or ray_address too")
    if (settings.gpus_per_worker or 0) > 1 and settings.gpus_per_worker != int(settings.gpus_per_worker or 0):
        raise ValueError(
            f"gpus_per_worker must be a fraction below 1 or a whole number, but got {settings.gpus_per_worker:g}"
        )
    if settings.dataset == "folder" and settings.data_dir is None:
        raise ValueError("dataset 'folder' needs data_dir")
    if settings.budget_gflops is None and settings.budget_ms is None:
        raise ValueError("budget_gflops, budget_ms or both must be given")
    if settings.operator in THRESHOLDS and settings.budget_ms is not None:
        raise ValueError(
            f"budget_ms cannot be met by {settings.operator} merging, whose time depends on the image: give "
            "budget_gflops"
        )
    if settings.search_img_size is not None and (settings.budget_ms is not None or settings.operator in THRESHOLDS):
        reason = "latencies are profiled at one" if settings.budget_ms is not None else "its costs are measured at one"
        other = (
            "budget_gflops alone" if settings.budget_ms is not None else f"another operator than {settings.operator}"
        )
        raise ValueError(f"search_img_size needs costs at every image size, but {reason}: give {other}")
    if settings.budget_quantile is not None and settings.operator not in THRESHOLDS:
        raise ValueError(
            f"budget_quantile needs an operator whose cost depends on the image, such as {min(THRESHOLDS)}, but got "
            f"{settings.operator}, which costs the same for all"
        )
    fields = type(settings).model_fields.items()
    given = [name for name, field in fields if name.startswith("latency_") and getattr(settings, name) != field.default]
    if given and settings.budget_ms is None:
        raise ValueError(f"{given[0]} needs budget_ms")
    if settings.latency_profile is not None and len(given) > 1:
        raise ValueError(f"latency_profile fixes how latency is measured; {given[0]} cannot be given with it")
