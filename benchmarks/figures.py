"""Figures of the documentation, drawn again: those of benchmarks from their published results, those of a run.

Claim:    a figure of a benchmark in docs/ shows what its published results say.
Command:  python benchmarks/figures.py
          python benchmarks/figures.py front layers report dashboard --run RUN
Duration: a minute of one thread; with --run two
Result:   docs/*.png
Page:     docs/benchmarks/index.md

Nothing is measured. With --run also the pictures of a run directory of `ltmsearch run` are drawn: its plots, its report
down to the end of the chapter on the front, and two pages of its dashboard. Its tables, plots and report are written
again before. --quick draws pages of the benchmarks' figures without a browser.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import better_schedules
import cluster_throughput
import rank_fidelity
import search_quality
import staleness
import threshold
import trial_cost
from harness.arguments import RESULTS, benchmark_parser, parse
from harness.figures import Drawing, save_figure
from harness.older_results import cluster_results, scaling_results
from harness.pictures import headless, picture_of_dashboard, picture_of_report, shrink
from harness.records import read_results
from PIL import Image

from ltmsearch.cli.progress import Notes
from ltmsearch.cli.terminal import notes
from ltmsearch.io.figures import write_drawing
from ltmsearch.reporting.write import write_results
from ltmsearch.search.run import Run

DOCS = Path("docs")
FIGURES: dict[str, Callable[[dict[str, Any]], Drawing]] = {
    "better_schedules": better_schedules.drawing,
    "cluster": lambda published: cluster_throughput.drawing(cluster_results(published)),
    "rank_fidelity": rank_fidelity.drawing,
    "scaling": lambda published: trial_cost.drawing(scaling_results(published)),
    "search_quality": search_quality.drawing,
    "staleness": staleness.drawing,
    "threshold": threshold.drawing,
}
"""Name of a figure and of its published results -> how its script draws it."""
PLOTS = ("front", "layers")
PAGES = {"report": picture_of_report, "dashboard": picture_of_dashboard}


def draw(name: str, out: Path, *, pages: bool) -> None:
    """Draw the figure of a benchmark as a PNG, or as a page."""
    published = read_results(RESULTS / f"{name}.json")
    drawing = replace(FIGURES[name](published), stem=name)
    if pages:
        save_figure(drawing, out, png=False)
        return
    with tempfile.TemporaryDirectory() as scratch:  # its page is not kept
        note = write_drawing(drawing.figure, scratch, name, title=drawing.title, height=drawing.height)
        if note:
            print(note)
        keep(Path(scratch, f"{name}.png"), out)


def keep(drawn: Path, out: Path) -> None:
    """Save a PNG with fewer colours; without a browser there is none."""
    if not drawn.exists():
        return
    with Image.open(drawn) as image:
        shrink(image, out / drawn.name)
    print(f"written: {out / drawn.name}", flush=True)


def draw_run(run: Run, names: list[str], out: Path) -> None:
    """Draw pictures of a run, after its tables, plots and report were written again."""
    begun = time.time()
    write_results(run, Notes(notes()))
    for name in PLOTS:
        path = run.folder / f"{name}.png"
        if name in names and path.exists() and path.stat().st_mtime >= begun:  # an older one stays without a browser
            keep(path, out)
    pages = [name for name in PAGES if name in names]
    if not pages:
        return
    with headless() as browser:
        if isinstance(browser, str):
            print(f"not written: {' and '.join(pages)}: {browser}")
            return
        for name in pages:
            shrink(PAGES[name](browser, run), out / f"{name}.png")
            print(f"written: {out / name}.png", flush=True)


def main() -> None:
    parser = benchmark_parser(__doc__)
    names = [*FIGURES, *PLOTS, *PAGES]
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--run", type=Path, help="run directory, for front, layers, report and dashboard")
    parser.set_defaults(out=DOCS)
    args = parse(parser)
    wanted = args.figures or [name for name in names if name in FIGURES or args.run]
    if unknown := set(wanted) - set(names):
        parser.error(f"FIGURE must be among {', '.join(names)}, but got {', '.join(sorted(unknown))}")
    of_run = [name for name in wanted if name not in FIGURES]
    if of_run and not args.run:
        parser.error(f"{of_run[0]} takes --run")
    for name in wanted:
        if name in FIGURES:
            draw(name, args.out, pages=args.quick)
    if of_run:
        draw_run(Run.open(args.run), of_run, args.out)


if __name__ == "__main__":
    main()
