"""Record and tables of `ltmsearch profile`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltmsearch.costs import CostModel
from ltmsearch.io.console_tables import make_table, print_in_parts, print_line
from ltmsearch.latency.measurement import Measurement
from ltmsearch.latency.profile import Check, LatencyProfile
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.schedules.grid import kept_share
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import SearchSpace


def profile_record(profile: LatencyProfile, costs: CostModel, space: SearchSpace, path: str) -> dict[str, Any]:
    """Return the target, the plain network, and predictions of uniform schedules and of single layers, for JSON."""
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
            name: {"latency_ms": model.latency_ms(schedule), "gflops": costs.gflops(schedule)}
            for name, schedule in _uniform_schedules(space).items()
        },
        "saved_ms": {
            layer: {str(choice): model.base - model.cost_at_one_layer(layer, choice) for choice in options[1:]}
            for layer, options in zip(space.layers, space.choices, strict=True)
        },
    }


def _uniform_schedules(space: SearchSpace) -> dict[str, MergeSchedule]:
    """Return schedules with one keep ratio and form in all layers, or the nearest ratio that a layer offers."""
    choices = {choice for options in space.choices for choice in options if choice.keep_ratio < 1}
    schedules = {}
    for ratio, form in sorted(choices, key=lambda choice: (-choice.keep_ratio, choice.form or "")):
        offered = [[Choice(1.0), *(c for c in options if c.form == form)] for options in space.choices]
        nearest = [_nearest(options, n, ratio) for options, n in zip(offered, space.layer_tokens, strict=True)]
        if all(len(options) > 1 for options in offered) and any(choice.keep_ratio == ratio for choice in nearest):
            schedules[f"{ratio:g} {form or space.operator}"] = MergeSchedule(
                keep_ratios={layer: c.keep_ratio for layer, c in zip(space.layers, nearest, strict=True)},
                operator=space.operator,
                forms={layer: c.form for layer, c in zip(space.layers, nearest, strict=True) if c.form is not None},
            )
    return schedules


def _nearest(options: Sequence[Choice], n: int, ratio: float) -> Choice:
    """The choice whose share of `n` tokens is nearest to that of a keep ratio."""
    return min(options, key=lambda c: (abs(kept_share(n, c.keep_ratio) - kept_share(n, ratio)), c.keep_ratio != ratio))


def print_profile(console: Console, record: Mapping[str, Any], target: LatencyTarget) -> None:
    """Print the plain network, uniform keep ratios, and the time saved by merging at single layers."""
    plain = Measurement.model_validate(record["plain"])
    for line in (
        f"{record['backbone']}, {record['operator']}; {target}",
        f"plain network {_format(plain)} ms; highest load of the machine meanwhile {record['load']:.1f}",
        f"predicted from {record['subnets']} subnets, timed in {record['seconds']:.0f} s; "
        f"{Check.model_validate(record['check'])}",
        f"schedules range from {record['lowest_ms']:.2f} to {record['highest_ms']:.2f} ms",
    ):
        console.print(line, markup=False, highlight=False)
    table = make_table("keep ratio in all layers", "ms", "× plain", "GFLOPs", box=None)
    for name, uniform in record["uniform"].items():
        share = uniform["latency_ms"] / plain.ms
        table.add_row(name, f"{uniform['latency_ms']:.2f}", f"{share:.2f}", f"{uniform['gflops']:.4f}")
    if table.row_count:
        console.print(table)
    choices = list(dict.fromkeys(choice for saved in record["saved_ms"].values() for choice in saved))
    ratios = sorted({choice.partition(" ")[0] for choice in choices}, key=float, reverse=True)
    forms = list(dict.fromkeys(choice.partition(" ")[2] for choice in choices))
    print_in_parts(console, ratios, lambda part: _saved_table(record["saved_ms"], part, forms))
    console.print(
        "ms saved by merging at this layer only, per keep ratio; [red]red![/red]: slower. Dash: same tokens as another "
        "ratio.",
        highlight=False,
    )
    print_line(console, f"profile: {record['file']}")


def _saved_table(saved_ms: Mapping[str, Mapping[str, float]], ratios: Sequence[str], forms: Sequence[str]) -> Table:
    table = make_table("layer", "", *ratios, box=None)
    table.columns[1].justify = "left"
    for layer, saved in saved_ms.items():
        for form in forms:
            cells = [_format_saved(saved.get(f"{ratio} {form}".strip())) for ratio in ratios]
            table.add_row(layer if form == forms[0] else "", form, *cells)
    return table


def print_nets(console: Console, target: LatencyTarget, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print latency and cost of networks; the first is the plain one."""
    console.print(str(target), markup=False, highlight=False)
    table = make_table("network", "ms", "× plain", "GFLOPs", "× plain", "samples", box=None)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # file names may be long
    plain = next(iter(rows.values()))
    for name, row in rows.items():
        latency = Measurement.model_validate(row["reading"])
        table.add_row(
            Text(name),
            _format(latency),
            f"{latency.ms / plain['reading']['ms']:.3f}",
            f"{row['gflops']:.4f}",
            f"{row['gflops'] / plain['gflops']:.3f}",
            str(latency.visits),
        )
    console.print(table)
    if not all(row["reading"]["stable"] for row in rows.values()):
        console.print("? unstable even after more samples; measure again on a machine with less load", highlight=False)


def print_runtimes(console: Console, targets: Mapping[str, LatencyTarget], record: Mapping[str, Any]) -> None:
    """Print the record of `profile_in_every_runtime`."""
    for runtime, target in targets.items():
        print_nets(console, target, record["runtimes"][runtime]["nets"])
    for runtime, reason in record["skipped"].items():
        print_line(console, f"{runtime} skipped: {reason}", wrap=True)
    print_line(console, record["recommendation"], wrap=True)


def _format(latency: Measurement) -> str:
    return f"{latency.ms:.2f} ± {latency.ms * latency.error:.2f}" + ("" if latency.stable else "?")


def _format_saved(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.2f}" if ms > 0 else f"[red]{ms:.2f}![/red]"
