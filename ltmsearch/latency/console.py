"""Latency for people: what `ltmsearch profile` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltmsearch.costs import CostModel
from ltmsearch.io.console_tables import print_in_parts
from ltmsearch.latency.measurement import Reading
from ltmsearch.latency.profile import Check, LatencyProfile
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import SearchSpace


def profile_record(profile: LatencyProfile, costs: CostModel, space: SearchSpace, path: str) -> dict[str, Any]:
    """What is told of a profile, for JSON: the target, the plain net, and per layer what merging there alone saves."""
    model = profile.model(costs)
    low, high = model.table(space.choices).reachable()
    return {
        "backbone": profile.backbone,
        "operator": profile.operator,
        "target": profile.target.model_dump(),
        "file": path,
        "plain": profile.plain.model_dump(),
        "subnets": len(profile.subnets),
        "check": profile.check.model_dump(),
        "load": profile.load,
        "seconds": profile.seconds,
        "lowest_ms": low,
        "highest_ms": high,
        "uniform": {
            f"{ratio:g} {form}": {
                "latency_ms": model.latency_ms(schedule), "gflops": costs.gflops(schedule),
            }
            for (ratio, form), schedule in _uniform(space).items()
        },
        "saved_ms": {
            layer: {str(choice): model.base_ms - model.cost_at_one_layer(layer, choice) for choice in options[1:]}
            for layer, options in zip(space.layers, space.choices, strict=True)
        },
    }  # fmt: skip


def _uniform(space: SearchSpace) -> dict[tuple[float, str], MergeSchedule]:
    """The same keep ratio in the same form in all layers, for every pair that all layers offer near enough."""
    choices = {choice for options in space.choices for choice in options if choice.keep_ratio < 1}
    schedules = {}
    for ratio, form in sorted(choices, key=lambda choice: (-choice.keep_ratio, choice.form or "")):
        of_form = [[Choice(1.0), *(c for c in options if c.form == form)] for options in space.choices]
        taken = [min(options, key=lambda c: abs(c.keep_ratio - ratio)) for options in of_form]
        if all(len(options) > 1 for options in of_form) and any(choice.keep_ratio == ratio for choice in taken):
            schedules[ratio, form or space.operator] = MergeSchedule(
                keep_ratios={layer: c.keep_ratio for layer, c in zip(space.layers, taken, strict=True)},
                operator=space.operator,
                forms={layer: c.form for layer, c in zip(space.layers, taken, strict=True) if c.form is not None},
            )
    return schedules


def print_profile(console: Console, record: Mapping[str, Any], target: LatencyTarget) -> None:
    """Totals, uniform keep ratios, and per layer what merging there alone saves."""
    plain = Reading.model_validate(record["plain"])
    _words(console, f"{record['backbone']}, {record['operator']}; {target}")
    _words(console, f"plain net {_reading(plain)} ms; {record['load']:.1f} was the machine's greatest load meanwhile")
    _words(
        console,
        f"predicted from {record['subnets']} subnets, timed in {record['seconds']:.0f} s, "
        f"{Check.model_validate(record['check'])}; schedules reach {record['lowest_ms']:.2f} to "
        f"{record['highest_ms']:.2f} ms",
    )
    table = Table("keep ratio in all layers", "ms", "× plain", "GFLOPs", box=None)
    for name, uniform in record["uniform"].items():
        share = uniform["latency_ms"] / plain.ms
        table.add_row(name, f"{uniform['latency_ms']:.2f}", f"{share:.2f}", f"{uniform['gflops']:.4f}")
    _right(table)
    console.print(table)
    choices = list(dict.fromkeys(choice for saved in record["saved_ms"].values() for choice in saved))
    ratios = sorted({choice.partition(" ")[0] for choice in choices}, key=float, reverse=True)
    forms = list(dict.fromkeys(choice.partition(" ")[2] for choice in choices))
    print_in_parts(console, ratios, lambda some: _saved_table(record["saved_ms"], some, forms))
    console.print(
        "Under a keep ratio, in ms: what merging at this layer alone saves; [red]red![/red] costs time. A dash: the "
        "same tokens as another ratio.",
        highlight=False,
    )
    _path(console, "kept in", record["file"])


def _saved_table(saved_ms: Mapping[str, Mapping[str, float]], ratios: Sequence[str], forms: Sequence[str]) -> Table:
    """What merging at each layer alone saves, for some of the keep ratios."""
    table = Table("layer", "", *ratios, box=None)
    for layer, saved in saved_ms.items():
        for form in forms:
            cells = [_saved(saved.get(f"{ratio} {form}".strip())) for ratio in ratios]
            table.add_row(layer if form == forms[0] else "", form, *cells)
    _right(table)
    table.columns[1].justify = "left"
    return table


def print_nets(console: Console, target: LatencyTarget, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Nets that were timed beside each other, the first of them the plain one."""
    _words(console, str(target))
    table = Table("net", "ms", "× plain", "GFLOPs", "× plain", "visits", box=None)
    plain = next(iter(rows.values()))
    for name, row in rows.items():
        reading = Reading.model_validate(row["reading"])
        table.add_row(
            Text(name),
            _reading(reading),
            f"{reading.ms / plain['reading']['ms']:.3f}",
            f"{row['gflops']:.4f}",
            f"{row['gflops'] / plain['gflops']:.3f}",
            str(reading.visits),
        )
    _right(table)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # a file may have any name
    console.print(table)
    if not all(row["reading"]["stable"] for row in rows.values()):
        _words(console, "? unstable: the readings scatter, also after further visits; a quieter machine would help")


def _reading(reading: Reading) -> str:
    return f"{reading.ms:.2f} ± {reading.ms * reading.error:.2f}" + ("" if reading.stable else "?")


def _saved(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.2f}" if ms > 0 else f"[red]{ms:.2f}![/red]"


def _right(table: Table) -> None:
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"


def _words(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _path(console: Console, words: str, path: str) -> None:
    """On one line, however long: it is to be copied."""
    console.print(f"{words} {path}", markup=False, highlight=False, soft_wrap=True)
