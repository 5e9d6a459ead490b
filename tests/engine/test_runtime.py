"""What runs the networks: here the memory that they run in."""

import sys

import pytest
from support.processes import completed

from ltmsearch.engine.runtime import keep_freed_memory

FAULTS = """
import resource, sys, torch
from ltmsearch.engine.runtime import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
values = torch.ones(12 * 2**20)
for _ in range(20):  # until the heap has found its shape
    values + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    values + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Pages that the system handed out for ten results of 48 MiB, in a process of its own."""
    done = completed([sys.executable, "-c", FAULTS, *arguments])
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no such setting")
@pytest.mark.slow
def test_memory_that_is_freed_is_used_again() -> None:
    assert faults("keep") < faults() / 2


def test_without_such_a_c_library_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr("ltmsearch.engine.runtime.ctypes.CDLL", lambda _: Other())
    assert not keep_freed_memory()
