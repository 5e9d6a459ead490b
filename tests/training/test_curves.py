import math
import re
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from support.processes import completed

from ltmsearch.training.curves import curves_figure, write_curves
from ltmsearch.training.epoch_records import EpochRecord


def epoch(number: int, **fields: Any) -> EpochRecord:
    """An epoch without averaging and without the IB loss."""
    defaults: dict[str, Any] = {
        "lr": 2e-4, "train_loss": 4.0 / number, "ib_weight": 0.0, "top1": 10.0 * number, "loss": 3.0 / number,
        "images_per_second": 810.0, "seconds": 12.5,
    }  # fmt: skip
    return EpochRecord(epoch=number, **(defaults | fields))


def full(number: int, **fields: Any) -> EpochRecord:
    """An epoch with everything; the averaged weights are ahead by one point, the IB loss sets in at epoch 3."""
    terms = {"mi_x": 0.2, "mi_y": 0.1 * number, "ib": 0.2 - 0.1 * number, "ibb": 1.0}
    averaged = {"ema_top1": 10.0 * number + 1, "ema_top5": 95.0, "ema_loss": 2.5 / number}
    defaults = {"top5": 90.0, "ib_weight": 0.1 if number >= 3 else 0.0, **terms, **averaged}
    return epoch(number, **(defaults | fields))


def trace(figure: go.Figure, name: str) -> go.Scatter:
    return next(t for t in figure.data if t.name == name)


def headings(figure: go.Figure) -> list[str]:
    return [re.sub("</?b>", "", annotation.text) for annotation in figure.layout.annotations]


def test_curves_show_their_columns() -> None:
    figure = curves_figure([full(n) for n in (3, 1, 2, 4)], title="a net")
    assert figure.layout.title.text == "a net"
    shown = {t.name: (t.x, tuple(round(y, 6) for y in t.y)) for t in figure.data}
    epochs = (1, 2, 3, 4)
    assert shown == {
        "training, all terms": (epochs, (4.0, 2.0, 1.333333, 1.0)),
        "validation": (epochs, (3.0, 1.5, 1.0, 0.75)),
        "validation, EMA": (epochs, (2.5, 1.25, 0.833333, 0.625)),
        "as trained": (epochs, (10.0, 20.0, 30.0, 40.0)),
        "EMA": (epochs, (11.0, 21.0, 31.0, 41.0)),
        "I(X̃;X)": (epochs, (0.2,) * 4),
        "I(X̃;Y)": (epochs, (0.1, 0.2, 0.3, 0.4)),
        "IB = I(X̃;X) − I(X̃;Y)": (epochs, (0.1, 0.0, -0.1, -0.2)),
        "at the end of the epoch": (epochs, (0.0002,) * 4),
        "best": ((4,), (41.0,)),
    }
    assert headings(figure) == [
        "Loss, nats",
        "Validation top-1, %",
        "Information bottleneck, nats",
        "Learning rate",
    ]


def test_start_of_the_ib_loss_is_marked() -> None:
    figure = curves_figure([full(n) for n in (1, 2, 3, 4)], title="t")
    assert [(line.xref, line.x0, line.x1) for line in figure.layout.shapes] == [
        ("x", 2.5, 2.5), ("x2", 2.5, 2.5), ("x3", 2.5, 2.5),
    ]  # fmt: skip
    assert "IB loss from epoch 3 on (dashed line), weight 0.1" in figure.layout.title.subtitle.text
    from_the_first = curves_figure([full(3), full(4)], title="t")
    assert from_the_first.layout.shapes == ()
    assert "IB loss from epoch 3 on, weight 0.1" in from_the_first.layout.title.subtitle.text
    never = curves_figure([epoch(1), epoch(2)], title="t")
    assert never.layout.shapes == ()
    assert "IB" not in never.layout.title.subtitle.text


def test_subtitle_names_the_best_weights() -> None:
    words = curves_figure([full(1), full(2), full(3, ema_top1=0.0, top1=0.5)], title="t").layout.title.subtitle.text
    assert words.startswith("best top-1 21.00 % after epoch 2 of 3 (averaged weights, EMA)")
    words = curves_figure([epoch(1), epoch(2)], title="t").layout.title.subtitle.text
    assert words == "best top-1 20.00 % after epoch 2 of 2 (weights as trained)"


def test_missing_values_leave_no_empty_panel() -> None:
    figure = curves_figure([epoch(1), epoch(2)], title="t")
    assert {t.name for t in figure.data} == {
        "training, all terms", "validation", "as trained", "at the end of the epoch", "best",
    }  # fmt: skip
    assert headings(figure) == ["Loss, nats", "Validation top-1, %", "Learning rate"]
    assert figure.layout.xaxis3.domain == (0, 1)


def test_hover_texts() -> None:
    figure = curves_figure([full(1), full(2, top5=None)], title="t")
    assert figure.layout.hovermode == "x unified"
    assert figure.layout.xaxis2.unifiedhovertitle.text == "epoch %{x}"
    assert trace(figure, "as trained").customdata == (", top-5 90.00", "")
    assert trace(figure, "as trained").hovertemplate == "%{y:.2f}%{customdata}"
    assert trace(figure, "at the end of the epoch").hovertemplate.startswith("%{y:.3g}")


def test_axes_of_a_single_epoch() -> None:
    layout = curves_figure([full(1)], title="t").layout
    assert {axis.matches for axis in (layout.xaxis, layout.xaxis2, layout.xaxis3, layout.xaxis4)} == {"x"}
    assert layout.xaxis.range == (0.5, 1.5)
    assert layout.xaxis.dtick == 1
    assert layout.yaxis4.rangemode == "tozero"


def test_many_epochs_have_no_markers() -> None:
    figure = curves_figure([epoch(n, top1=50.0) for n in range(1, 301)], title="t")
    assert {t.mode for t in figure.data if t.name != "best"} == {"lines"}
    assert figure.layout.xaxis.dtick is None


def test_large_losses_are_cut_off() -> None:
    figure = curves_figure([full(1, ema_loss=5000.0), full(2, loss=math.inf), full(3)], title="t")
    low, high = figure.layout.yaxis.range
    assert low < 2.5 / 3  # the lowest of all
    assert high == 6.0  # 1.5 of the highest training loss
    assert headings(figure)[0] == "Loss, nats; values above 6 not shown"
    assert curves_figure([full(1), full(2)], title="t").layout.yaxis.range is None


def test_page_contains_the_curves(tmp_path: Path) -> None:
    write_curves([full(1, loss=math.nan), full(2)], tmp_path, title="a net", png=False)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.html"]
    page = (tmp_path / "curves.html").read_text(encoding="utf-8")
    assert "<title>a net</title>" in page
    assert '"y":[null,1.5]' in page


def test_drawing_imports_neither_torch_nor_optuna() -> None:
    heavy = {"torch", "optuna", "timm", "kaleido"}
    code = f"import sys, ltmsearch.training.curves; print(sorted({heavy} & set(sys.modules)))"
    answer = completed([sys.executable, "-c", code])
    assert answer.stdout.strip() == "[]"
