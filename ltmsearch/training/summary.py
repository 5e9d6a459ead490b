"""A finished training, for people and for programs."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from ltmsearch.training.epoch_records import EpochRecord, select_best
from ltmsearch.training.options import BEST, LAST, LOG, RECIPE
from ltmsearch.training.trainer import TrainingResult

_COLUMNS = (
    ("top-1 %", "top1", 1), ("top-5 %", "top5", 1), ("loss", "loss", 4), ("averaged\ntop-1 %", "ema_top1", 1),
    ("averaged\nloss", "ema_loss", 4), ("IB\nnats", "ib", 4),
)  # fmt: skip
"""Heading, field of an `EpochRecord`, digits behind the point."""


def training_record(result: TrainingResult) -> dict[str, Any]:
    """What is told of a training, for JSON: the net, the best epoch and the last, and where the files lie."""
    best, last = _best_and_last(result)
    recipe, folder = result.recipe, result.folder
    return {
        "folder": str(folder),
        "model": recipe.model,
        "operator": recipe.schedule.operator,
        "img_size": recipe.img_size,
        "num_classes": recipe.num_classes,
        "gflops": result.gflops,
        "params": result.params,
        "epochs": recipe.epochs,
        "best": asdict(best) | {"weights": select_best(result.records).weights},
        "last": asdict(last),
        "files": {
            name: str(folder / file)
            for name, file in (("recipe", RECIPE), ("best", BEST), ("last", LAST), ("log", LOG))
        },
    }


def print_training(console: Console, result: TrainingResult) -> None:
    """Print the best and the last epoch, and where the files lie; 80 columns are enough."""
    best, last = _best_and_last(result)
    table = Table()
    table.add_column("epoch", no_wrap=True)
    known = [c for c in _COLUMNS if any(getattr(record, c[1]) is not None for record in (best, last))]
    for heading, _, _ in known:
        table.add_column(heading, justify="right", no_wrap=True)
    for record, name in ((best, "best"), (last, "last")):
        table.add_row(f"{name} {record.epoch}", *(_cell(getattr(record, field), digits) for _, field, digits in known))
    title = f"{result.recipe.model}: {result.gflops:.4f} GFLOPs, {result.params / 1e6:.2f} M parameters"
    console.print(title, markup=False, highlight=False)
    console.print(table)
    console.print("on all validation images; the best epoch is chosen on these same images", style="dim")
    console.print(
        f"weights, log and curves: {result.folder} ({BEST}, {LAST})", markup=False, highlight=False, soft_wrap=True
    )


def _best_and_last(result: TrainingResult) -> tuple[EpochRecord, EpochRecord]:
    return result.records[select_best(result.records).epoch - 1], result.records[-1]


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
