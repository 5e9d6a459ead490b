"""Result of a finished training, as JSON and as a table."""

from dataclasses import asdict
from typing import Any

from rich.console import Console

from ltmsearch.io.console_tables import make_table, print_line
from ltmsearch.training.epoch_records import EpochRecord, select_best
from ltmsearch.training.options import BEST, LAST, LOG, RECIPE
from ltmsearch.training.trainer import TrainingResult

_COLUMNS = (
    ("top1", "top-1 %", ".1f"),
    ("top5", "top-5 %", ".1f"),
    ("loss", "loss", ".4f"),
    ("ema_top1", "EMA\ntop-1 %", ".1f"),
    ("ema_loss", "EMA\nloss", ".4f"),
    ("ib", "IB\nnats", ".4f"),
)
"""Field of an `EpochRecord`, heading, number format."""


def training_record(result: TrainingResult) -> dict[str, Any]:
    """Return the network, the best and the last epoch, and the paths of the files, for JSON."""
    recipe, folder = result.recipe, result.folder
    best, last = _best_and_last(result)
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
    """Print the best and the last epoch and the folder, in at most 80 columns."""
    best, last = _best_and_last(result)
    columns = [column for column in _COLUMNS if any(getattr(record, column[0]) is not None for record in (best, last))]
    table = make_table("epoch", *(heading for _, heading, _ in columns))
    for record, name in ((best, "best"), (last, "last")):
        values = [(getattr(record, field), digits) for field, _, digits in columns]
        cells = ["" if value is None else format(value, digits) for value, digits in values]
        table.add_row(f"{name} {record.epoch}", *cells)
    print_line(console, f"{result.recipe.model}: {result.gflops:.4f} GFLOPs, {result.params / 1e6:.2f} M parameters")
    console.print(table)
    console.print("Scores on all validation images, which also choose the best epoch.", style="dim")
    print_line(console, f"weights, log and curves: {result.folder} ({BEST}, {LAST})")


def _best_and_last(result: TrainingResult) -> tuple[EpochRecord, EpochRecord]:
    return result.records[select_best(result.records).epoch - 1], result.records[-1]
