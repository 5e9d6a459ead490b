"""Searched schedules against uniform ones and one learned by gradient, at equal GFLOPs.

Claim:    on small backbones searched schedules are not shown to be better than uniform or learned ones.
Command:  python benchmarks/better_schedules.py --work FOLDER --data-dir IMAGES
              --cases mobilevit_xs:folder vit_tiny_patch16_224:folder efficientvit_b0:digits
Duration: an hour and a half of one thread; a case takes 15 to 25 minutes
Result:   benchmarks/results/better_schedules.json and .html
Page:     docs/benchmarks/training.md

From the same trained unmerged base each net gets the same short training: the base itself, uniform `ltm`, `tome` and
`pool` (in a ViT merging at three layers, `ltm` also in the matched form), a schedule learned under a FLOPs penalty as
DiffRate and LTMP do it (harness/learned_schedule.py), the best of the front of `ltmsearch run` under the target, and
that of a search for costs from 0.95 of the target on. Search and learning use the base of seed 0 alone.

Scores are of the weights after the last step on all validation images and on a test set that neither training nor
search used: the folder's test/ where there is one, 2,000 newly drawn digits. Differences are paired by seed.
"""

import argparse
from dataclasses import asdict, replace
from statistics import mean
from typing import Any

from harness.arguments import add_data_dir, add_seeds, add_work, benchmark_parser, parse
from harness.equal_cost import EqualCostNets
from harness.figures import BLUE, GREEN, GREY, ORANGE, YELLOW, Drawing, Panel, Series, draw, save_figure
from harness.records import finished, read_results, settings_of, write_results
from harness.short_training import Case, ShortTraining
from harness.statistics import differences, mean_sd, standard_error
from harness.tables import console, print_table

from ltmsearch.costs import GIGA

MOBILEVIT = Case(backbone="mobilevit_xs", data="folder", img_size=64, lr=1e-3)
# After 240 steps a ViT is hardly beyond the most frequent class: one base of its own length serves all seeds.
VIT = Case(backbone="vit_tiny_patch16_224", data="folder", img_size=96, amp=True, base_steps=880, bases=1)
EFFICIENTVIT = Case(backbone="efficientvit_b0", data="folder", img_size=96, base_steps=480)
SWIN = Case(backbone="swin_tiny_patch4_window7_224", data="folder", img_size=64, amp=True)
CASES = {
    each.name: each for case in (MOBILEVIT, VIT, EFFICIENTVIT, SWIN) for each in (case, replace(case, data="digits"))
}
AIMS = {"ltm": 1.0, "tome": 2.0, "base": -0.5}
"""Points of top-1 by which the searched schedule was to be ahead."""
SEARCH = (
    "--trials 24 --base-steps 0 --sandwich-steps 20 --batch-size 32 --search-images 512 --rescore-images 1000 "
    "--calibration-images 128 --device cpu --quiet"
)
QUICK_SEARCH = (
    "--trials 2 --base-steps 0 --sandwich-steps 2 --batch-size 4 --search-images 16 --rescore-images 16 "
    "--report-images 16 --screened-schedules 16 --calibration-images 8 --rescore-candidates 2 --device cpu --quiet"
)
MARKS = {"searched": (BLUE, 0.22), "searched in range": (GREEN, 0.0), "learned": (YELLOW, -0.22)}
"""Net -> colour, and place beside the middle of its row in the figure."""


class Outcome:
    """Scores of the nets of one case, from its results."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.case, self.nets = found["case"], found["nets"]
        self.name = f"{self.case['backbone']}:{self.case['data']}"
        self.split = "test" if self.has("test") else "validation"

    def has(self, split: str) -> bool:
        """Whether there are scores of a split."""
        return split in self.nets["base"]["runs"][0]

    def values(self, net: str, split: str, key: str = "top1") -> list[float]:
        """Score of each seed."""
        return [run[split][key] for run in self.nets[net]["runs"]]

    def ahead(self, net: str, other: str, split: str | None = None) -> list[float]:
        """Top-1 differences to another net of the same seed."""
        split = split or self.split
        return differences(self.values(net, split), self.values(other, split))

    def rows(self, split: str) -> list[list[str]]:
        """Table rows."""
        rows = []
        for net, about in self.nets.items():
            before = mean_sd(self.values(net, "before"))
            cells = [f"{about['gflops']:.5f}", f"{about['of_plain']:.3f}", before, mean_sd(self.values(net, split))]
            cells.append(f"{mean(self.values(net, split, 'loss')):.3f}")
            others = ("base", "ltm", "tome")
            gaps = ["" if net == other else mean_sd(self.ahead(net, other, split), sign=True) for other in others]
            rows.append([f"{self.name}, {net}", *cells, *gaps])
        return rows

    def verdicts(self) -> list[str]:
        """Whether each aim is reached."""
        lines = []
        for net in ("searched", "searched in range"):
            for other, aim in AIMS.items():
                ahead = self.ahead(net, other)
                word = "reached" if mean(ahead) >= aim else "not reached"
                if abs(mean(ahead) - aim) < 2 * standard_error(ahead):
                    word += ", within two standard errors of the aim"
                gap = mean_sd(ahead, sign=True)
                lines.append(f"{self.name}: {net} − {other}: {gap} on {self.split}, aim {aim:+.1f}: {word}")
        return lines


def fine_tuned(nets: EqualCostNets, net: str, seed: int) -> dict[str, Any]:
    """Scores and seconds of the short training of a net."""

    def train() -> dict[str, Any]:
        result = nets.training.fine_tune(nets.recipe(net), seed)
        print(f"{nets.case.name}, {net}, seed {seed}: {result['validation']['top1']:.1f}", flush=True)
        return result

    return finished(nets.folder / f"fine-tuned-{net.replace(' ', '-')}-{seed}.json", train)


def measure(nets: EqualCostNets, seeds: int) -> dict[str, Any]:
    """Results of one case."""
    runs = {net: [fine_tuned(nets, net, seed) for seed in range(seeds)] for net in nets.nets}
    recipes, table = {net: nets.recipe(net) for net in runs}, nets.space[1]
    return {
        "case": asdict(nets.case),
        "target_gflops": nets.target / GIGA,
        "plain_gflops": table.base / GIGA,
        "least_gflops": table.reachable()[0] / GIGA,
        "nets": {
            net: {
                **recipe.provenance,
                "keep_ratios": dict(recipe.schedule.keep_ratios),
                "forms": dict(recipe.schedule.forms),
                "runs": runs[net],
            }
            for net, recipe in recipes.items()
        },
        "learned": read_results(nets.folder / "learned.json"),
        "seconds": nets.seconds(),
    }


def drawing(results: dict[str, Any]) -> Drawing:
    """Differences of the searched and the learned schedules, and the aims."""
    outcomes = [Outcome(found) for found in results["cases"]]
    rows = range(len(outcomes) - 1, -1, -1)
    names = [f"{each.case['backbone'].partition('_patch')[0]}<br>{each.case['data']}" for each in outcomes]
    x_axis = {"title": "points of top-1", "zerolinecolor": GREY, "zerolinewidth": 1}
    panels = []
    for other, aim in AIMS.items():
        series = []
        for net, (color, shift) in MARKS.items():
            ahead = [each.ahead(net, other) for each in outcomes]
            dots = [(value, row + shift) for row, values in zip(rows, ahead, strict=True) for value in values]
            small: dict[str, Any] = {"size": 6, "opacity": 0.4, "mode": "markers"}
            series.append(Series(x=[x for x, _ in dots], y=[y for _, y in dots], color=color, **small))
            spread = [standard_error(values) * len(values) ** 0.5 if len(values) > 1 else 0 for values in ahead]
            places, middle = [row + shift for row in rows], [mean(values) for values in ahead]
            look: dict[str, Any] = {"name": net, "mode": "markers", "size": 10}
            series.append(Series(x=middle, y=places, color=color, error_x=spread, **look))
        ticks = {"tickvals": list(rows), "ticktext": names, "range": [-0.6, len(outcomes) - 0.4], "zeroline": False}
        title = "− unmerged" if other == "base" else f"− uniform {other}"
        panels.append(Panel(title=title, series=series, x_axis=x_axis, y_axis=ticks, lines=[("x", aim, ORANGE)]))
    title = "Schedules at equal GFLOPs: paired differences, mean ± sd; small marks: seeds; dashed: aim"
    figure, height = draw(title, panels, columns=3, share_y=True), 300 + 85 * len(outcomes)
    return Drawing(figure=figure, stem="better_schedules", title="Schedules at equal GFLOPs", height=height)


def run_case(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Results of one case, by all its trainings."""
    case = CASES[name]
    if args.quick:
        case = replace(case, base_steps=8, tuned_steps=2, bases=1, score_images=64)
    training = ShortTraining(case, args.work / name.replace(":", "-"), args.data_dir)
    nets = EqualCostNets(training, (QUICK_SEARCH if args.quick else SEARCH).split(), args.learning_steps)
    found = measure(nets, args.seeds)
    for part in ("data", "test"):
        training.__dict__.pop(part, None)  # decoded images that the next case does not need
    return found


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_work(parser)
    add_data_dir(parser)
    add_seeds(parser, 3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="backbone:data")
    parser.add_argument("--learning-steps", type=int, default=100, help="steps of the learned schedule")
    args = parse(parser, cases=["mobilevit_xs:digits"], seeds=1, learning_steps=1)
    cases = [name for name in args.cases if args.data_dir or name.endswith(":digits")]
    results: dict[str, Any] = {"settings": settings_of(args), "cases": [run_case(name, args) for name in cases]}
    outcomes = [Outcome(found) for found in results["cases"]]
    headings = ("net", "GFLOPs", "of plain", "before", "top-1", "loss", "− unmerged", "− ltm", "− tome")
    for split in ("validation", "test"):
        rows = [row for each in outcomes if each.has(split) for row in each.rows(split)]
        print_table(f"top-1 on {split} images, mean ± sd of {args.seeds} seeds", headings, rows)
    for outcome in outcomes:
        console.print("\n".join(outcome.verdicts()))
    write_results(args.out / "better_schedules.json", **results)
    save_figure(drawing(results), args.out)


if __name__ == "__main__":
    main()
