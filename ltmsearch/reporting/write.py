"""The files of a finished study: tables, plots, recipes."""

from pathlib import Path
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.reporting.findings import find, write_findings
from ltmsearch.reporting.html import write_page
from ltmsearch.reporting.layer_plot import write_layers
from ltmsearch.reporting.pareto_plot import write_front
from ltmsearch.search.records import FRONT, TRIALS, TrialRecord, front_table, select_front, trials_table, write_csv
from ltmsearch.search.setup import Workbench
from ltmsearch.search.timing import Clock, Times

FINDINGS, RECIPES = "findings.json", "recipes"


def write_results(
    folder: Path, bench: Workbench, records: list[TrialRecord], callbacks: Callbacks, clock: Clock
) -> None:
    """Write one recipe per trial of the front, `trials.csv`, `front.csv`, `findings.json`, two plots and the report.

    Args:
        folder: The run directory.
        bench: What the study worked with.
        records: Every trial, re-scored.
        callbacks: Receives a note on a picture that could not be drawn.
        clock: Of this call; what it has counted is saved before the report tells of it.
    """
    callbacks.phase("writing", 0)
    recipes = folder / RECIPES
    recipes.mkdir(exist_ok=True)
    wanted = {}
    for record in select_front(records, bench.settings.axis.name):
        recipe = make_recipe(record, bench.settings, num_classes=bench.evaluator.data.num_classes)
        wanted[recipe_path(folder, record)] = recipe
    for path, recipe in wanted.items():
        recipe.save(path)
    for stale in set(recipes.glob("*.yaml")) - set(wanted):
        stale.unlink()
    write_tables_and_plots(folder, bench.settings, records, callbacks, clock)


def write_tables_and_plots(
    folder: Path,
    settings: ResolvedSettings,
    records: list[TrialRecord],
    callbacks: Callbacks,
    clock: Clock | None = None,
) -> None:
    """Write everything that follows from the records and the times alone.

    Args:
        folder: The run directory.
        settings: Of the study.
        records: Every trial.
        callbacks: Receives a note on a picture that could not be drawn.
        clock: Of a call that goes on; None: `times.json` holds all there is.
    """
    write_csv(trials_table(records), folder / TRIALS)
    write_csv(front_table(records, settings.axis.name), folder / FRONT)
    findings = find(records, settings.axis.name)
    write_findings(findings, folder / FINDINGS)
    title = f"{settings.backbone}, {settings.operator} merging, {settings.dataset}"
    written = write_front(records, folder, title=title, axis=settings.axis)
    # A browser that is missing or hangs is waited for, and told of, once.
    also = write_layers(findings, folder, title=title, axis=settings.axis, png=written.note is None)
    for note in (written.note, also.note):
        if note:
            callbacks.note(note)
    if clock is not None:
        clock.save()
    write_page(records, settings, findings, Times.load(folder), folder)  # last, to tell of the time all else took


def recipe_path(folder: Path, record: TrialRecord) -> Path:
    """Where the recipe of a trial lies."""
    return folder / RECIPES / f"{record.trial}.yaml"


def make_recipe(record: TrialRecord, settings: ResolvedSettings, *, num_classes: int) -> Recipe:
    """The recipe of one trial, with where it comes from."""
    score = record.score
    provenance: dict[str, Any] = {
        "study": settings.study,
        "trial": record.trial,
        "seed": settings.seed,
        "dataset": settings.dataset,
        "budget_gflops": settings.budget_gflops,
        "budget_ms": settings.budget_ms,
        "gflops": record.gflops,
        "latency_ms": record.latency_ms,
        "latency_measured_ms": record.latency_measured_ms,
        "proxy": {
            "top1": score.top1 if score else None,
            "top1_se": score.top1_se if score else None,
            "expected_top1": record.expected_top1,
            "mi_x": record.mi_x,
            "mi_y": record.mi_y,
            "ibb": record.ibb,
            "img_size": settings.proxy_img_size,
            "supernet_version": record.supernet_version,
            "scored_with": "final weights" if score and score.rescored else "weights of the trial",
        },
        "versions": dict(library_versions()),
    }
    return Recipe(
        model=f"ltm_{settings.backbone}",
        schedule=record.schedule,
        img_size=settings.img_size,
        num_classes=num_classes,
        ib_weight=record.ib_weight or 0.0,
        ib_beta=settings.ib_beta,
        provenance=provenance,
    )
