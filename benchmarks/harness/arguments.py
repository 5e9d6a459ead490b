"""Argument heads that the benchmarks share."""

import argparse
import atexit
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
"""Published results; benchmarks are started from the repository root."""
SMALL_STUDY = (
    "trials=2",
    "base_steps=2",
    "sandwich_steps=2",
    "proxy_steps=1",
    "batch_size=4",
    "proxy_img_size=64",
    "base_img_size=64",
    "search_images=16",
    "rescore_images=16",
    "report_images=16",
    "screened_schedules=16",
    "calibration_images=8",
    "rescore_candidates=2",
)
"""Settings of a study under `--quick`."""
QUICK_RESULTS = RESULTS / "quick"
"""Results of `--quick`, which are not published."""


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """Parser with the options of every benchmark: `--out` and `--quick`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help=f"shrink the study to a test run; writes {QUICK_RESULTS}")
    return parser


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Parse the command line; `--quick` replaces defaults, so that options on the command line still count.

    Args:
        parser: Made by `benchmark_parser`.
        quick: Destination of an option -> its default under `--quick`.
    """
    if "--quick" in sys.argv[1:]:
        parser.set_defaults(out=QUICK_RESULTS, **quick)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def add_backbones(parser: argparse.ArgumentParser, backbones: Sequence[str], *, only: bool = False) -> None:
    """Add `--backbones`; with `only` no other names are accepted."""
    choices = list(backbones) if only else None
    parser.add_argument("--backbones", nargs="+", default=list(backbones), choices=choices, help="timm names")


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add `--work`, the folder of finished parts; under `--quick` a new temporary one."""
    quick = "--quick" in sys.argv[1:]
    text = "folder that keeps finished parts: the same command continues after a stop"
    default = Path(tempfile.mkdtemp()) if quick else None
    if default is not None:
        atexit.register(shutil.rmtree, default, ignore_errors=True)
    parser.add_argument("--work", type=Path, required=not quick, default=default, help=text)


def add_seeds(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Add `--seeds`, a number: seeds count from 0."""
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--data-dir`."""
    parser.add_argument("--data-dir", type=Path, help="image folder; default: the built-in digits")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--settings`: further settings of the study, which `study_settings` reads."""
    text = "further settings of the study"
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help=text)


def study_settings(args: argparse.Namespace) -> dict[str, str]:
    """Name and value of each of `--settings`."""
    return dict(setting.split("=", 1) for setting in args.settings)
