"""Run a whole study: set up, search, final scores, results. The only place where the parts are put together."""

import time
from contextlib import ExitStack

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import library_versions
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError, LeaseLost, WorkersLost, printable, shortened
from ltmsearch.latency import hardware_name
from ltmsearch.reporting.dashboard.pages import DashboardHooks
from ltmsearch.reporting.examples import EXAMPLES, draw_examples, write_examples
from ltmsearch.reporting.findings import findings_of
from ltmsearch.reporting.front_table import prediction_lines
from ltmsearch.reporting.recipes import write_recipes
from ltmsearch.reporting.write import write_results
from ltmsearch.search.driver import Driver
from ltmsearch.search.lease import Lease
from ltmsearch.search.records import TRIALS, trials_table, write_csv
from ltmsearch.search.resume import OpenRun, open_run
from ltmsearch.search.run import Run
from ltmsearch.search.storage import reraise_storage_errors
from ltmsearch.search.timing import OVERHEAD, RESCORING, WARM_UP, WRITING, Clock
from ltmsearch.search.trial import load_parameters
from ltmsearch.search.workers.ray import RayWorkers


def run_study(
    settings: StudySettings,
    callbacks: Callbacks | None = None,
    *,
    takeover: bool = False,
    clock: Clock | None = None,
) -> Run:
    """Run a search, or continue one that was interrupted or gets more trials.

    Args:
        settings: Settings of the study.
        callbacks: Receives progress.
        takeover: Take over a study from another driver, which ends as soon as it notices.
        clock: Has the time spent on the study before this call, such as that of imports; None: no time yet.

    Returns:
        The run directory, with its trials, tables, plots and recipes.

    Raises:
        InputError: If a setting is invalid or differs from the study in the run directory, or another driver works on
            it.
        StorageLost: If the study's database fails later.
        LeaseLost: If another driver has taken the study over.
    """
    callbacks = callbacks or Callbacks()
    start, clock = time.monotonic(), clock or Clock()
    until = None if settings.timeout is None else start + settings.timeout
    with ExitStack() as stack:
        stack.callback(callbacks.close)
        lease = stack.enter_context(Lease(settings.run_dir, takeover=takeover, callbacks=callbacks))
        stack.enter_context(reraise_storage_errors(settings))
        stack.callback(clock.save)
        try:
            run = open_run(settings, callbacks, clock, lease, stack)
            context = run.context
            hardware = hardware_name(context.evaluator.training.device)
            clock.keep(run.folder, device=f"{hardware}; {context.conditions}", versions=library_versions())
            driver = Driver(
                context,
                run.folder,
                callbacks,
                clock,
                run.storage,
                confirm=lease.confirm,
                hooks=DashboardHooks(context, run.folder),
            )
            _search(driver, run, until)
            with clock.part(WRITING):
                lease.confirm()
                result = _write(driver)
        except LeaseLost:
            clock.leave()
            raise
        return result


def _write(driver: Driver) -> Run:
    """Write tables, plots, report and recipes."""
    context, callbacks, records = driver.context, driver.callbacks, driver.records()
    write_csv(trials_table(records), driver.folder / TRIALS)
    result = Run.open(driver.folder)
    for line in prediction_lines(result.front, context.settings.axis):
        callbacks.note(line)
    callbacks.phase("writing", 0)
    write_recipes(driver.folder, result.front, context.settings, num_classes=context.evaluator.data.num_classes)
    _draw_examples(driver, result)
    write_results(result, callbacks, driver.clock)
    driver.hooks.study_updated(driver.study, records)
    return result


def _draw_examples(driver: Driver, run: Run) -> None:
    """Draw images for the report. An error becomes a note: recipes and tables must not be lost for pictures."""
    load_parameters(driver.context.evaluator.supernet, driver.shared.weights)
    try:
        examples = draw_examples(driver.context, findings_of(run), run.answers)
    except (InputError, MemoryError, RuntimeError) as error:
        examples = None
        driver.callbacks.note(f"the report has no images whose answers change: {printable(shortened(str(error), 200))}")
    write_examples(examples, driver.folder / EXAMPLES)


def _search(driver: Driver, run: OpenRun, until: float | None) -> None:
    """Warm up, search, compute final scores and latencies."""
    clock = driver.clock
    try:
        with clock.part(WARM_UP):
            driver.warm_up(run.found)
        with clock.part(OVERHEAD):
            driver.settle()
            if run.connection is not None and driver.wants_trials():
                driver.workers = RayWorkers.for_study(run.connection, run.context, driver.callbacks)
            driver.search(until=until)
        driver.workers.close()
        with clock.part(RESCORING):
            driver.rescore()
        driver.measure()
    except (KeyboardInterrupt, SystemExit, WorkersLost):
        driver.confirm()
        if driver.records():  # for `ltmsearch front`
            write_csv(trials_table(driver.records()), driver.folder / TRIALS)
        raise
