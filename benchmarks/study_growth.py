"""Processor seconds and memory of one more trial as a study grows, by sampler.

Claim:    ten thousand trials cost three times as much each as the first hundred, a fraction of a second.
Command:  python benchmarks/study_growth.py
Duration: hours of one thread; NSGA-II and random take half an hour each
Result:   benchmarks/results/study_growth.json
Page:     docs/benchmarks/search.md

The real driver, storage, sampler and dashboard files, on one virtual worker with made-up scores; shared weights are
neither moved nor saved. Each sampler runs in a process of its own.
"""

import json

from harness.arguments import benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.simulated_study import prepare_simulation, simulate
from harness.tables import print_table
from harness.timing import in_own_process
from harness.virtual_cluster import Durations


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", default="mobilevit_xxs")
    parser.add_argument("--budget-gflops", type=float, default=0.27)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--samplers", nargs="+", default=["tpe", "nsga2", "random"])
    parser.add_argument("--point", help="measure one study, as JSON: used by the benchmark itself")
    args = parse(parser, samplers=["random"], trials=70)
    if args.point:
        context = prepare_simulation(**json.loads(args.point), out="unused")
        print(json.dumps(simulate(context, 1, durations=Durations(failure_share=0.0, death_share=0.0))["growth"]))
        return
    study = {"backbone": args.backbone, "budget_gflops": args.budget_gflops, "trials": args.trials}
    results, rows = {}, []
    for sampler in args.samplers:
        measured = in_own_process(__file__, **study, sampler=sampler)
        results[sampler] = {n: value for n, value in measured.items() if n.isdigit()}
        rows += [
            [f"{sampler}, {n} trials", f"{at['seconds']:.3f}", f"{at['peak_mib']:,.0f}"]
            for n, at in results[sampler].items()
        ]
    print_table(args.backbone, ("study", "processor seconds of one more trial", "peak MiB"), rows)
    write_results(args.out / "study_growth.json", settings=settings_of(args), samplers=results)


if __name__ == "__main__":
    main()
