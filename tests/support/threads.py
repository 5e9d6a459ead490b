"""Threads of torch that are only counted: several real ones take minutes on a busy machine."""

from collections.abc import Callable

import pytest
import torch

from ltmsearch.engine.stopwatch import THREADS_VARIABLES


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the number that torch reports; computing takes one thread, and no environment variable is set."""
    number = [torch.get_num_threads()]

    def set_number(new: int) -> None:
        number[0] = new

    for name in THREADS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(torch, "set_num_threads", set_number)
    return set_number
