"""JSON results with versions and machine, and finished parts that a stopped benchmark finds again."""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltmsearch.config.recipe import library_versions
from ltmsearch.io.files import write_atomic


def processor() -> str:
    """Model name of the processor, where the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    """Processor, cores, torch threads, and load."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a benchmark without its folders."""
    return {name: value for name, value in vars(args).items() if not isinstance(value, Path)}


def write_results(path: Path, **content: Any) -> None:
    """Write results with the versions of the libraries and the machine."""
    write_json(path, {**content, "versions": dict(library_versions()), "machine": machine()})
    print(f"written: {path}", flush=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON; arrays become lists."""
    write_atomic(path, json.dumps(content, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else dict(value)


def read_results(path: Path) -> dict[str, Any]:
    """Results written before; empty where there are none."""
    return json.loads(path.read_text()) if path.exists() else {}


def refuse_other_options(folder: Path, options: dict[str, Any]) -> None:
    """End the benchmark if the finished parts in a folder are of other options; the first time, note them."""
    text, path = json.dumps(options, default=str, sort_keys=True), folder / "options.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{folder} has parts of other options: {path.read_text()}; give another --work")
    write_atomic(path, text)


def finished(path: Path, make: Callable[[], Any]) -> Any:
    """Content of a finished part; made and kept where the file is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return json.loads(path.read_text())
