"""Processor seconds and memory of a trial by image size, batch size and network; seconds of a cost table by depth.

Claim:    a trial grows with its images' pixels, slower with the batch, and costs of deep nets stay small.
Command:  python benchmarks/trial_cost.py
Duration: half an hour
Result:   benchmarks/results/trial_cost.json and .html
Page:     docs/benchmarks/search.md

Real trials (`Evaluator.evaluate`), each point in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
from typing import Any

from harness.arguments import benchmark_parser, parse
from harness.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    YELLOW,
    Drawing,
    Panel,
    Series,
    draw,
    log_axis,
    save_figure,
)
from harness.records import settings_of, write_results
from harness.tables import print_table
from harness.timing import Seconds, in_own_process, least_seconds, peak_mib

BUDGETS = {
    "mobilevit_xxs": 0.27,
    "mobilevit_s": 1.2,
    "vit_tiny_patch16_224": 0.7,
    "swin_tiny_patch4_window7_224": 3.5,
    "vit_small_patch16_36x1_224": 6.0,
}
SECONDS = {"title": "processor seconds", "rangemode": "tozero"}
SAMPLERS = {"tpe": "TPE", "nsga2": "NSGA-II"}
"""Sampler -> name in the figure."""
MEMORY = {"title": "MiB", "rangemode": "tozero", "tickmode": "auto"}
IMAGE_SIZES, BATCH_SIZES, DEPTHS = (64, 96, 128, 160, 192, 224), (4, 8, 16, 32, 64), (6, 12, 24, 36, 48)


def measure_trial(backbone: str, repeats: int, **settings: Any) -> dict[str, Any]:
    """Least processor seconds of some trials after one that warms up, and the peak memory."""
    from ltmsearch import StudySettings
    from ltmsearch.callbacks import Callbacks
    from ltmsearch.search.setup import prepare
    from ltmsearch.search.trial import parameters

    context = prepare(StudySettings.make(backbone=backbone, budget_gflops=BUDGETS[backbone], **settings), Callbacks())
    weights, schedule = parameters(context.evaluator.supernet), context.space.schedule(context.space.nearest(0.5))

    def trial() -> None:
        context.evaluator.evaluate(weights, schedule, ib_weight=0.1, seed=0)

    trial()
    seconds = least_seconds(repeats, trial).processor
    return {"seconds": seconds, "peak_mib": peak_mib(), "layers": len(context.space.layers)}


def measure_depth(depth: int) -> dict[str, Any]:
    """Seconds to count a ViT of so many blocks and make its cost table, and microseconds to cost a schedule."""
    import numpy as np

    from ltmsearch.costs import cost_model
    from ltmsearch.models import create_subnet, get_adapter
    from ltmsearch.schedules.space import SearchSpace
    from ltmsearch.schedules.space_file import SpaceFile

    backbone = "vit_tiny_patch16_224"
    net, start = create_subnet(backbone, depth=depth), Seconds.now()
    costs = cost_model(backbone, net, (224, 224))
    file = SpaceFile.load(None, family=get_adapter(backbone).family)
    space = SearchSpace.build(file, costs)
    table = costs.table(space.choices)
    counted = (Seconds.now() - start).wall
    schedules = space.random(np.random.default_rng(0), 10_000)
    costed = least_seconds(1, lambda: table.costs(schedules)).wall
    return {"table_seconds": counted, "cost_microseconds": 1e6 * costed / len(schedules)}


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """All points by part."""

    def trial(backbone: str = args.backbone, **settings: Any) -> dict[str, Any]:
        return in_own_process(__file__, backbone=backbone, repeats=args.repeats, **settings)

    return {
        "image size": [trial(proxy_img_size=size) for size in args.img_sizes],
        "batch size": [trial(batch_size=size) for size in args.batch_sizes],
        "network": [trial(backbone) for backbone in args.backbones],
        "depth": [in_own_process(__file__, depth=depth) for depth in args.depths],
    }


def drawing(results: dict[str, Any]) -> Drawing:
    """Seconds and memory by image size, batch size and network; seconds of a cost table by depth.

    Results that have `samplers`, of `study_growth.py`, are drawn with two panels more.
    """
    panels = [
        _trials(results["image size"], "proxy_img_size", "Image size", "pixels"),
        _trials(results["batch size"], "batch_size", "Batch size", "images a step"),
    ]
    panels[1].x_axis |= {"type": "log"}
    if nets := results["network"]:
        names = [f"{point['backbone'].split('_patch')[0]}<br>{point['layers']} layers" for point in nets]
        panel = _trials(nets, "", "Network", "")
        panel.x_axis = {"tickvals": list(range(len(nets))), "ticktext": names, "tickangle": 0, "zeroline": False}
        panel.x_axis["tickfont"] = {"size": 10}
        panels.append(panel)
    deep = results["depth"]
    x, y = [point["depth"] for point in deep], [point["table_seconds"] for point in deep]
    table = Series(x=x, y=y, color=ORANGE, name="seconds to count a network once")
    axes: dict[str, Any] = {"x_axis": {"title": "blocks", "tickvals": x}, "y_axis": SECONDS}
    panels.append(Panel(title="Blocks of a ViT", series=[table], **axes))
    panels += _growth(results.get("samplers", {}))
    figure, rows = draw("Time and memory of one trial", panels), -(-len(panels) // 2)
    return Drawing(figure=figure, stem="trial_cost", title="Time and memory of one trial", height=200 + 320 * rows)


def _trials(points: list[dict[str, Any]], key: str, title: str, unit: str) -> Panel:
    """Seconds and memory of trials; without a key, side by side."""
    x = [point[key] if key else place for place, point in enumerate(points)]
    mode = "lines+markers" if key else "markers"
    seconds, memory = [point["seconds"] for point in points], [point["peak_mib"] for point in points]
    series = [
        Series(x=x, y=seconds, color=BLUE, name="seconds of a trial", mode=mode),
        Series(x=x, y=memory, color=GREY, dash="dot", name="peak memory", mode=mode, second=True),
    ]
    axes: dict[str, Any] = {"x_axis": {"title": unit, "tickvals": x}, "y_axis": SECONDS, "second_axis": MEMORY}
    return Panel(title=title, series=series, **axes)


def _growth(samplers: dict[str, Any]) -> list[Panel]:
    """Seconds of one more trial, and memory, by the number of trials in the study."""
    panels = []
    for key, what, axis in (("seconds", "seconds of one more trial", SECONDS), ("peak_mib", "memory", MEMORY)):
        series = [
            Series(
                x=[int(number) for number in marks],
                y=[mark[key] for mark in marks.values()],
                color=color,
                name=f"one more trial, {SAMPLERS.get(sampler, sampler)}",
            )
            for (sampler, marks), color in zip(samplers.items(), (GREEN, PINK, YELLOW, BLACK), strict=False)
        ]
        if series:
            panels.append(
                Panel(
                    title=f"Trials in the study: {what}",
                    series=series,
                    x_axis=log_axis("trials", numbers=(1, 3)),
                    y_axis=axis,
                )
            )
    return panels


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", default="mobilevit_s", help="backbone whose image and batch sizes vary")
    parser.add_argument("--backbones", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--img-sizes", type=int, nargs="+", default=list(IMAGE_SIZES))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--point", help="measure one point, as JSON: used by the benchmark itself")
    small = {"backbone": "mobilevit_xxs", "backbones": [], "img_sizes": [64], "batch_sizes": [4], "depths": [6]}
    args = parse(parser, **small, repeats=1)
    if args.point:
        options = json.loads(args.point)
        print(json.dumps(measure_depth(**options) if "depth" in options else measure_trial(**options)))
        return
    measured = measure_all(args)
    for part, points in measured.items():
        values = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in point.values()] for point in points]
        print_table(part, points[0] if points else (), values)
    results = {"settings": settings_of(args), **measured}
    write_results(args.out / "trial_cost.json", **results)
    save_figure(drawing(results), args.out)


if __name__ == "__main__":
    main()
