"""Where the wall time of `ltmsearch run` goes.

    python benchmarks/search_time.py [--backbone B] [--budget-gflops X] [--trials N] [--base-steps N] [--set NAME=VALUE]

Runs a study through the library, by default the README's command, with clocks wrapped around its parts. A part's
seconds are its own: what runs inside a part that has a clock of its own counts there. Seconds are of this machine;
shares travel between machines of one kind. Beside other jobs read the processor's seconds, with OMP_WAIT_POLICY=PASSIVE
so that threads that wait take none. Prints a table and writes JSON.
"""

import argparse
import functools
import json
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isgenerator
from pathlib import Path
from typing import Any

SETTING_UP, IMAGES, WARM_UP, TRAINING = "setting up", "images", "warm-up training", "proxy training"
SCORING, RECALIBRATION, IB, RESCORING = "validation scoring", "BatchNorm recalibration", "IB statistics", "re-scoring"
SAMPLER, STORAGE, CHECKPOINTS, WEIGHTS = "sampler", "storage", "checkpoints", "copying weights"
PAGES, RESULTS, REST = "the dashboard's pages", "writing results", "rest"
PARTS = (
    SETTING_UP, IMAGES, WARM_UP, TRAINING, SCORING, RECALIBRATION, IB, SAMPLER, STORAGE, CHECKPOINTS, PAGES, WEIGHTS,
    RESCORING, RESULTS, REST,
)  # fmt: skip
OVERHEADS = (SAMPLER, STORAGE, CHECKPOINTS, PAGES, RECALIBRATION, IMAGES)
"""What is to take 5 % of the wall time at most, together."""


class Clocks:
    """Exclusive wall time, and processor time of all threads, of parts that run inside each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.running = [REST]
        self._since = time.perf_counter(), time.process_time()

    def _switch(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds[self.running[-1]] += now[0] - self._since[0]
        self.processor[self.running[-1]] += now[1] - self._since[1]
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside the `with` block to a part."""
        self._switch()
        self.running.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def wrap(self, owner: Any, name: str, part: str | Callable[[], str]) -> None:
        """Put a clock around a function or method; around every step of what it yields where it is a generator."""
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            where = part if isinstance(part, str) else part()
            with self.part(where):
                result = plain(*args, **kwargs)
            return self._steps(result, where) if isgenerator(result) else result

        setattr(owner, name, timed)

    def _steps(self, generator: Iterator[Any], part: str) -> Iterator[Any]:
        while True:
            with self.part(part):
                try:
                    item = next(generator)
                except StopIteration:
                    return
            yield item


def put_clocks(clocks: Clocks) -> None:
    """Wrap the parts of the package. Names are looked up where they are used."""
    from optuna.storages._cached_storage import _CachedStorage
    from optuna.study import Study

    from ltmsearch import study
    from ltmsearch.data.loading import ImageData
    from ltmsearch.engine.ib_loss import IBLoss, IBMeter
    from ltmsearch.reporting.dashboard.pages import DashboardHooks as Pages
    from ltmsearch.search import driver, resume, setup, trial
    from ltmsearch.search import shared_weights as shared

    def scoring() -> str:
        return RESCORING if RESCORING in clocks.running else SCORING

    for name in (name for name in vars(_CachedStorage) if not name.startswith("_")):
        clocks.wrap(_CachedStorage, name, STORAGE)
    for owner, name, part in (
        (resume, "prepare", SETTING_UP), (setup, "load_data", IMAGES), (ImageData, "_batches", IMAGES),
        (setup.Workbench, "warm_up", WARM_UP), (trial, "proxy_train", TRAINING), (trial, "score", scoring),
        (trial, "recalibrate", RECALIBRATION), (trial, "recalibrate_and_fit", RECALIBRATION),
        (IBLoss, "fit", IB), (IBMeter, "add", IB), (IBMeter, "terms", IB),
        (driver, "suggest", SAMPLER), (driver, "make_sampler", SAMPLER), (Study, "ask", SAMPLER),
        (resume, "open_study", STORAGE), (driver, "open_study", STORAGE), (Study, "tell", STORAGE),
        (Study, "get_trials", STORAGE), (Study, "enqueue_trial", STORAGE), (shared, "save_checkpoint", CHECKPOINTS),
        (resume, "load_checkpoint", CHECKPOINTS), (shared, "load_parameters", WEIGHTS), (shared, "parameters", WEIGHTS),
        (shared.SharedWeights, "move", WEIGHTS), (trial, "load_parameters", WEIGHTS), (trial, "parameters", WEIGHTS),
        (Pages, "trial_started", PAGES), (Pages, "trial_scored", PAGES), (Pages, "trial_finished", PAGES),
        (Pages, "study_updated", PAGES),
        (trial.Evaluator, "_example_merges", PAGES), (driver.Driver, "rescore", RESCORING),
        (study, "write_results", RESULTS),
    ):  # fmt: skip
        clocks.wrap(owner, name, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilevit_s")
    parser.add_argument("--budget-gflops", type=float, default=1.2)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--base-steps", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="any other setting of a study")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/search_time.json"))
    args = parser.parse_args()

    given = {"trials": args.trials, "base_steps": args.base_steps, **dict(each.split("=", 1) for each in args.set)}
    clocks, load = Clocks(), os.getloadavg()[0]
    with clocks.part(SETTING_UP):
        import torch

        from ltmsearch import StudySettings, run_study
        from ltmsearch.callbacks import Callbacks

        put_clocks(clocks)

    class Printing(Callbacks):
        def note(self, message: str) -> None:
            print(message, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        settings = StudySettings.make(
            backbone=args.backbone, budget_gflops=args.budget_gflops, out=str(Path(scratch, "run")), **given
        )
        result = run_study(settings, Printing())
    with clocks.part(REST):
        wall = sum(clocks.seconds.values())
    processor = sum(clocks.processor.values())
    print(f"{'part':26}{'seconds':>9}{'share':>8}{'processor':>11}{'share':>8}{'calls':>7}")
    for part in PARTS:
        own = clocks.seconds[part], clocks.processor[part]
        shares = own[0] / wall, own[1] / processor
        print(f"{part:26}{own[0]:9.2f}{shares[0]:8.1%}{own[1]:11.2f}{shares[1]:8.1%}{clocks.calls[part]:7}")
    proposals = len(result.trials)
    print(f"{'all':26}{wall:9.2f}{'':8}{processor:11.2f}; {proposals} proposals", end="")
    print(f"; load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    overheads = [sum(clock[part] for part in OVERHEADS) for clock in (clocks.seconds, clocks.processor)]
    print(f"{', '.join(OVERHEADS)} together: {overheads[0] / wall:.1%}, {overheads[1] / processor:.1%}")

    for point in [*result.front, *(r for r in result.trials if r.kind == "baseline")]:
        print(f"trial {point.trial:3} {point.label:12} {point.gflops:.4f} GFLOPs, top-1 {point.score} %")

    record = {
        "settings": settings.model_dump(exclude_unset=True, exclude={"out"}),
        "wall_seconds": wall,
        "seconds": {part: clocks.seconds[part] for part in PARTS},
        "calls": {part: clocks.calls[part] for part in PARTS},
        "processor_seconds": {part: clocks.processor[part] for part in PARTS},
        "overheads_share": overheads[0] / wall,
        "proposals": proposals,
        "trial_seconds": [r.seconds for r in result.trials if r.seconds is not None],
        "machine": {
            "cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__, "load": load,
        },
    }  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
