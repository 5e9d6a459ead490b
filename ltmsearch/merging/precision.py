"""The number format in which merges are decided."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast: masks, similarities and sizes are computed in float32."""
    enabled = device.type != "meta" and torch.is_autocast_enabled(device.type)  # torch refuses to answer for "meta"
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()
