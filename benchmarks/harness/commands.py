"""The `ltmsearch` command in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def call_ltmsearch(command: Sequence[str], log: Path, *, threads: int | None = None) -> None:
    """Run a command with its output in a file; an error ends the benchmark.

    Args:
        command: Arguments of `ltmsearch`.
        log: File that the output is added to.
        threads: Number of threads; None: that of the environment.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with log.open("a") as stream:
        print("$ ltmsearch", *command, file=stream, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "ltmsearch", *command], stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
    if done.returncode:
        raise SystemExit(f"ltmsearch {command[0]} ended with {done.returncode}: see {log}")
