"""Wall time, memory and front of the first command of the README; its costs counted again by fvcore.

Claim:    `ltmsearch run --backbone mobilevit_s --budget-gflops 1.2` takes minutes on two cores, the same seed finds
          the same front, and the GFLOPs of the front are those that fvcore counts in the exported nets.
Command:  python benchmarks/first_command.py [--repeat]
Duration: four minutes, with --repeat eight
Result:   benchmarks/results/first_command.json
Page:     docs/benchmarks/index.md

The seconds of each part are those that every run writes into its own `times.json`.
"""

import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import timm
from harness.arguments import SMALL_STUDY, add_data_dir, add_settings, benchmark_parser, parse, study_settings
from harness.commands import call_ltmsearch
from harness.records import settings_of, write_results
from harness.tables import console, print_table
from harness.timing import Seconds

from ltmsearch import load_recipe
from ltmsearch.costs import GIGA, traced_macs

SCORES = ["report_top1", "report_top1_se", "difference", "difference_se"]


def run(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run the command: seconds, peak MiB, and its tables."""
    start = Seconds.now()
    call_ltmsearch(["run", "--quiet", "--out", str(folder), *arguments], folder.with_suffix(".log"))
    (stint,) = json.loads((folder / "times.json").read_text())["stints"]
    return {
        "seconds": (Seconds.now() - start).wall,
        "parts": stint["seconds"],
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "front": pd.read_csv(folder / "front.csv"),
        "trials": pd.read_csv(folder / "trials.csv"),
        "verdict": json.loads((folder / "findings.json").read_text())["verdict"],
    }


def traced_gflops(folder: Path, front: pd.DataFrame) -> list[float]:
    """GFLOPs of every point of a front: the recipe's network built by timm and traced by fvcore."""
    counts = []
    for trial in front.trial:
        recipe = load_recipe(folder / "recipes" / f"{trial}.yaml")
        model = timm.create_model(recipe.model, **recipe.model_kwargs())
        counts.append(traced_macs(model, (recipe.img_size, recipe.img_size)) / GIGA)
    return counts


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data_dir(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", action="store_true", help="run twice and compare the fronts")
    parser.add_argument("--backbone", default="mobilevit_s")
    parser.add_argument("--budget-gflops", type=float, default=1.2)
    add_settings(parser)
    args = parse(parser, backbone="mobilevit_xxs", budget_gflops=0.27, settings=SMALL_STUDY)
    arguments = [f"--backbone={args.backbone}", f"--budget-gflops={args.budget_gflops}", f"--seed={args.seed}"]
    arguments += [f"--data-dir={args.data_dir}"] if args.data_dir else []
    arguments += [f"--{name.replace('_', '-')}={value}" for name, value in study_settings(args).items()]
    with tempfile.TemporaryDirectory() as scratch:
        runs = [run(Path(scratch, f"run-{number}"), arguments) for number in range(2 if args.repeat else 1)]
        front, trials = runs[0]["front"], runs[0]["trials"]
        counts = traced_gflops(Path(scratch, "run-0"), front)
    assert all(count == gflops for count, gflops in zip(counts, front.gflops, strict=True))
    baselines = trials[(trials.kind == "baseline") & trials.report_top1.notna()][["label", "gflops", *SCORES]]
    named = [(f"trial {r.trial}", r) for r in front.itertuples()] + [(r.label, r) for r in baselines.itertuples()]
    rows = [
        [
            name,
            f"{r.gflops:.4f}",
            f"{r.report_top1:.1f} ± {r.report_top1_se:.1f}",
            f"{r.difference:+.1f} ± {r.difference_se:.1f}",
        ]
        for name, r in named
    ]
    print_table("front and baselines", ("net", "GFLOPs", "top-1", "less plain"), rows)
    for each in runs:
        parts = ", ".join(f"{part} {seconds:.0f}" for part, seconds in each["parts"].items())
        console.print(f"{each['seconds']:.0f} s ({parts}), {each['peak_mib']:.0f} MiB")
    same = all(each["front"].equals(front) for each in runs) if args.repeat else None
    if args.repeat:
        console.print("the two fronts are the same" if same else "THE TWO FRONTS DIFFER")
    write_results(
        args.out / "first_command.json",
        settings=settings_of(args),
        command=["ltmsearch", "run", *arguments],
        runs=[{key: each[key] for key in ("seconds", "parts", "peak_mib")} for each in runs],
        same_front=same,
        front=front.to_dict("records"),
        baselines=baselines.to_dict("records"),
        verdict=runs[0]["verdict"],
    )


if __name__ == "__main__":
    main()
