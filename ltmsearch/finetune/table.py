"""A finished training as a table."""

from rich.console import Console
from rich.table import Table

from ltmsearch.epochs import EpochRecord, select_best
from ltmsearch.finetune.options import BEST, LAST
from ltmsearch.finetune.session import TrainingResult


def print_training(console: Console, result: TrainingResult) -> None:
    """Print the best and the last epoch, and where the files lie; 80 columns are enough."""
    records = result.records
    best, last = records[select_best(records).epoch - 1], records[-1]
    title = f"{result.recipe.model}: {result.gflops:.4f} GFLOPs, {result.params / 1e6:.2f} M parameters"
    table = Table(title=title, caption="on all validation images; the best epoch is chosen on these same images")
    for heading in ("epoch", "top-1 %", "top-5 %", "loss", "averaged: top-1 %", "loss", "IB, nats"):
        table.add_column(heading, justify="right")
    for record, name in ((best, "best"), (last, "last")):
        table.add_row(f"{name} {record.epoch}", *_cells(record))
    console.print(table)
    console.print(
        f"weights, log and curves: {result.folder} ({BEST}, {LAST})", markup=False, highlight=False, soft_wrap=True
    )


def _cells(record: EpochRecord) -> list[str]:
    values = (record.top1, record.top5, record.loss, record.ema_top1, record.ema_loss, record.ib)
    digits = (1, 1, 4, 1, 4, 4)
    return ["" if value is None else f"{value:.{places}f}" for value, places in zip(values, digits, strict=True)]
