"""What the weight of the IB loss does to the score of a trial.

    python benchmarks/ib_weight.py --data-dir my-images [--backbone mobilevit_xxs] [--proxy-steps 20] [--seeds 3]

One warm-up; then trials of one schedule (uniform, in the operator's first form) from the same shared weights, on the
same training images, with every weight. The first β is the published one, the second makes memberships sharp.
Differences are to weight 0 of the same seed, so that only the weight differs. Prints a table and writes JSON.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import library_versions
from ltmsearch.config.settings import StudySettings
from ltmsearch.io.files import write_atomic
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.setup import prepare
from ltmsearch.search.trial import Evaluator, parameters

RESULTS = Path(__file__).parent / "results" / "ib_weight.json"
WEIGHTS = (0.0, 0.01, 0.1, 1.0, 10.0)
BETAS = (1.0, 10.0)


def main() -> None:
    """Warm up, run the trials, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="image folder; without it the digits")
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--budget-gflops", type=float, default=0.27)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--proxy-img-size", type=int, default=64)
    parser.add_argument("--proxy-steps", type=int, default=20)
    parser.add_argument("--proxy-lr", type=float, default=2e-4)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--val-images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    args = vars(parser.parse_args())
    keep, seeds = args.pop("keep"), args.pop("seeds")
    settings = StudySettings.make("benchmark", rescore_images=args["val_images"], **args)
    bench = prepare(settings, Callbacks())
    s, data = bench.settings, bench.evaluator.data
    supernet = bench.evaluator.supernet
    for _ in bench.warm_up():
        pass
    shared = parameters(supernet)
    schedule = MergeSchedule.uniform(supernet.layers, keep)
    rows = []
    for beta in BETAS:
        evaluator = Evaluator(
            supernet=supernet, data=data, runtime=bench.evaluator.runtime,
            settings=s.model_copy(update={"ib_beta": beta}),
        )  # fmt: skip
        for weight in WEIGHTS:
            for seed in range(seeds):
                score = evaluator.evaluate(shared, schedule, ib_weight=weight, seed=seed).score
                assert score.ib is not None
                rows.append(
                    {"beta": beta, "ib_weight": weight, "seed": seed, "top1": score.top1, "loss": score.loss,
                     "mi_x": score.ib.mi_x, "mi_y": score.ib.mi_y, "ibb": score.ib.ibb}
                )  # fmt: skip
    table = Table(title=f"{s.backbone}, uniform {keep:g}, {data.description.partition(':')[0]}: {s.proxy_steps} steps")
    for heading in ("β", "weight", "top-1 %", "top-1 less that at 0", "loss less", "I(X̃;X)", "I(X̃;Y)"):
        table.add_column(heading, justify="right")
    for beta in BETAS:
        zero = [row for row in rows if row["beta"] == beta and row["ib_weight"] == 0]
        for weight in WEIGHTS:
            group = [row for row in rows if row["beta"] == beta and row["ib_weight"] == weight]
            top1, loss = ([a[k] - b[k] for a, b in zip(group, zero, strict=True)] for k in ("top1", "loss"))
            table.add_row(
                f"{beta:g}", f"{weight:g}", f"{mean(r['top1'] for r in group):.1f}", _spread(top1, 2),
                _spread(loss, 4), f"{mean(r['mi_x'] for r in group):.4f}", f"{mean(r['mi_y'] for r in group):.4f}",
            )  # fmt: skip
    Console().print(table)
    described = {name: value for name, value in args.items() if name != "data_dir"}
    content = {"settings": described, "keep": keep, "rows": rows, "versions": dict(library_versions())}
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomic(RESULTS, json.dumps(content, indent=1) + "\n")


def _spread(values: list[float], digits: int) -> str:
    return f"{mean(values):+.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


if __name__ == "__main__":
    main()
