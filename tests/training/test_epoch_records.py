import math
from pathlib import Path
from typing import Any

import pytest

from ltmsearch.errors import InputError
from ltmsearch.training.epoch_records import Best, EpochRecord, read_log, select_best, write_log


def epoch(number: int, **fields: Any) -> EpochRecord:
    """An epoch without averaging and without the IB loss."""
    defaults: dict[str, Any] = {
        "lr": 2e-4, "train_loss": 3.25, "ib_weight": 0.0, "top1": 40.5, "loss": 2.75, "images_per_second": 810.0,
        "seconds": 12.5,
    }  # fmt: skip
    return EpochRecord(epoch=number, **(defaults | fields))


FULL = epoch(
    2, lr=1 / 3e4, train_loss=math.pi, train_ib=-0.1, ib_weight=0.1, top1=100 / 3, top5=200 / 3, loss=1e-17,
    ema_top1=0.0, ema_top5=100.0, ema_loss=1e4, mi_x=0.0, mi_y=0.7, ib=-0.7, ibb=1 / 7, images_per_second=1e5,
    seconds=1 / 9,
)  # fmt: skip


def test_log_round_trip(tmp_path: Path) -> None:
    records = [epoch(1), FULL, epoch(5, loss=math.inf)]
    path = write_log(records, tmp_path / "log.csv")
    assert read_log(path) == records
    again = write_log(read_log(path), tmp_path / "again.csv")
    assert again.read_bytes() == path.read_bytes()


def test_log_has_the_documented_columns(tmp_path: Path) -> None:
    lines = write_log([epoch(1)], tmp_path / "log.csv").read_text().splitlines()
    assert lines == [
        "epoch,lr,train_loss,train_ib,ib_weight,top1,top5,loss,ema_top1,ema_top5,ema_loss,mi_x,mi_y,ib,ibb,"
        "images_per_second,seconds",
        "1,0.0002,3.25,,0.0,40.5,,2.75,,,,,,,,810.0,12.5",
    ]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"number": 0}, "epoch\n  Input should be greater than or equal to 1"),
        ({"top1": 100.5}, "top1\n  Input should be less than or equal to 100"),
        ({"ema_top5": -1}, "ema_top5\n  Input should be greater than or equal to 0"),
        ({"train_loss": math.nan}, "train_loss\n  Input should be a finite number"),
        ({"mi_x": math.inf}, "mi_x\n  Input should be a finite number"),
    ],
)
def test_invalid_records_are_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        epoch(**{"number": 1} | fields)


DAMAGE = {
    "foreign": (lambda text: "a,b\n1,2\n", "must have the columns .* but has 'a,b'"),
    "cut in the last number": (lambda text: text[:-2], "its last line is truncated"),
    "a word for a number": (lambda text: text.replace("40.5", "much"), "line 2: top1 must be a valid number, but"),
    "no loss": (lambda text: text.replace("2.75", ""), "line 2: loss must be a valid number"),
    "not finite": (lambda text: text.replace("3.25", "nan"), "line 2: train_loss must be a finite number"),
    "half an epoch": (lambda text: text.replace("\n1,", "\n1.5,"), "line 2: epoch: .*'1.5'"),
    "an epoch twice": (lambda text: text + text.splitlines()[2] + "\n", "line 4: each epoch must be unique, but 2"),
    "an epoch before": (lambda text: text.replace("\n1,", "\n7,"), "line 3: epochs must increase, but 2 follows 7"),
}


@pytest.mark.parametrize(("damage", "rule"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_logs_are_refused(tmp_path: Path, damage: Any, rule: str) -> None:
    path = write_log([epoch(1), epoch(2)], tmp_path / "log.csv")
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=rule) as caught:
        read_log(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_best_is_the_highest_and_earliest_top1() -> None:
    first, second, third = epoch(1, top1=50, ema_top1=20), epoch(2, top1=60, ema_top1=60), epoch(3, top1=60)
    assert select_best([third, second, first]) == Best(2, 60, "EMA")
    assert select_best([first, third]) == Best(3, 60, "trained")
    assert select_best([first, epoch(4, top1=10, ema_top1=60.1), second]) == Best(4, 60.1, "EMA")
    with pytest.raises(ValueError, match="at least one"):
        select_best([])
