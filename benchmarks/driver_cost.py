"""Processor time of the driver for each trial.

Claim:    the driver takes a quarter of a second of a processor per trial, half of it for the database and files.
Command:  python benchmarks/driver_cost.py
Duration: five minutes
Result:   benchmarks/results/driver_cost.json
Page:     docs/benchmarks/cluster.md

Work that takes the same in every trial would take hours to do ten thousand times; it is measured here on a short study
and charged to the virtual clock by `cluster_throughput.py`: SQLite, notes, files and pictures of the dashboard, moving
and saving the shared weights of mobilevit_s, and Ray. Two simulations of the short study, one that does the work and
one that charges it, show how well that fits.
"""

import tempfile
from pathlib import Path
from typing import Any

from harness.arguments import benchmark_parser, parse
from harness.records import settings_of, write_results
from harness.simulated_study import example_merges, prepare_simulation, simulate, with_settings
from harness.tables import print_table
from harness.timing import Seconds, least_seconds

from ltmsearch.callbacks import Callbacks
from ltmsearch.search.driver import Driver
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.trial import parameters
from ltmsearch.search.workers.actor import to_arrays
from ltmsearch.search.workers.connection import connect


def weights_seconds(context: StudyContext) -> Seconds:
    """Seconds of moving and saving the shared weights."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(with_settings(context, out=folder), Path(folder), Callbacks())
        start = driver.shared.weights
        trained = {name: value + 1e-4 for name, value in start.items()}
        moving = least_seconds(5, lambda: driver.shared.update(trained, start, age=3))
        return moving + least_seconds(5, driver.shared.save)


def ray_seconds(context: StudyContext) -> Seconds:
    """Seconds of Ray in the driver for one trial: weights put, a call, its end awaited, weights got."""
    connection = connect(with_settings(context, workers=2).settings)
    try:
        ray, arrays = connection.ray, to_arrays(parameters(context.evaluator.supernet))

        class Echo:
            def trained(self, weights: Any) -> Any:
                return {name: array + 1 for name, array in weights.items()}

        actor = ray.remote(num_cpus=1)(Echo).remote()

        def once() -> None:
            call = actor.trained.remote(ray.put(arrays))
            ray.wait([call], num_returns=1)
            ray.get(call)

        once()
        return least_seconds(10, once)
    finally:
        connection.close()


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", default="mobilevit_s")
    parser.add_argument("--budget-gflops", type=float, default=1.2)
    parser.add_argument("--trials", type=int, default=150, help="trials of the short study")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 256])
    args = parse(parser, backbone="mobilevit_xxs", budget_gflops=0.27, trials=8, workers=[1])
    context = prepare_simulation(
        args.backbone, budget_gflops=args.budget_gflops, trials=args.trials, sampler="random", out="unused"
    )
    merges = example_merges(context)
    done = {n: simulate(context, n, merges=merges) for n in args.workers}
    first = args.workers[0]
    undone = simulate(context, first, charges={"none": 0.0})
    charges = {part: done[first]["each"][part] - undone["each"][part] for part in ("proposal", "answer")}
    charges |= {"weights": weights_seconds(context).processor, "ray": ray_seconds(context).processor}
    size = sum(value.numel() for value in parameters(context.evaluator.supernet).values())
    rows = [[f"charged: {part}", f"{seconds:.3f}"] for part, seconds in charges.items()]
    fits = {}
    for n in args.workers:
        all_done = done[n]["driver_each"] + charges["weights"] + charges["ray"]
        fits[str(n)] = {"done": all_done, "charged": simulate(context, n, charges=charges)["driver_each"]}
        rows += [[f"{n} workers, all work {how}", f"{seconds:.3f}"] for how, seconds in fits[str(n)].items()]
    print_table(f"{args.backbone}, {size:,} parameters", ("part", "processor seconds per trial"), rows)
    path = args.out / "driver_cost.json"
    write_results(path, settings=settings_of(args), parameters=size, charges=charges, fits=fits)


if __name__ == "__main__":
    main()
