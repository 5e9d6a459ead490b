"""Training recipes of a study's trials."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ltmsearch.config.network import IMAGE_KEYS
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run

RECIPES = "recipes"
"""Folder in a run directory."""


def recipe_path(folder: Path, record: TrialRecord) -> Path:
    """File of a trial's recipe in a run directory."""
    return folder / RECIPES / f"{record.trial}.yaml"


def make_recipe(
    record: TrialRecord, settings: ResolvedSettings, *, num_classes: int, report_images: int | None = None
) -> Recipe:
    """The recipe of one trial, with its provenance.

    Args:
        num_classes: Classes of the data.
        report_images: Number of images that the trial was reported on; None before the final scores.
    """
    provenance: dict[str, Any] = {
        "study": settings.study,
        "trial": record.trial,
        "seed": settings.seed,
        "dataset": settings.dataset,
        "budget_gflops": settings.budget_gflops,
        "budget_ms": settings.budget_ms,
        "gflops": record.gflops,
        "gflops_sd": record.gflops_sd,
        "gflops_quantile": record.gflops_quantile,
        "latency_ms": record.latency_ms,
        "latency_measured_ms": record.latency_measured_ms,
        "split_layer": settings.split_layer,
        "tokens_sent": record.tokens_sent,
        "proxy": _proxy(record, settings) | {"report_images": report_images},
        "versions": dict(library_versions()),
    }
    policy: dict[str, Any] = {"aa": None} if settings.in_chans == 4 else {}  # timm's policies know no RGBA
    return Recipe(
        model=f"ltm_{settings.backbone}",
        schedule=replace(record.schedule, img_size=None),  # the recipe has it
        img_size=record.schedule.img_size or settings.img_size,
        teacher_img_size=settings.img_size if record.schedule.img_size else None,
        num_classes=settings.num_classes or num_classes,
        timm_kwargs=settings.model_kwargs,
        registers=settings.registers,
        readout=settings.readout,
        **{name: getattr(settings, name) for name in IMAGE_KEYS},
        **policy,
        ib_weight=record.ib_weight or 0.0,
        ib_beta=settings.ib_beta,
        provenance=provenance,
    )


def _proxy(record: TrialRecord, settings: ResolvedSettings) -> dict[str, Any]:
    """Scores before the training by a recipe, with the units of the record's fields."""
    measure = settings.axis.measure
    final = record.rescored(measure)
    names = ("report_top1", "report_top1_se", "difference", "difference_se", "agreement", "agreement_se")
    return {
        **{name: getattr(record, name) for name in names},
        "measure": measure,
        "value": record.told(measure) if final is None else final,
        "scored_with": "weights of the trial" if final is None else "final weights",
        **{name: getattr(record, name) for name in ("mi_x", "mi_y", "ibb")},
        "img_size": settings.proxy_img_size,
        "supernet_version": record.supernet_version if final is None else record.rescored_version,
    }


def write_recipes(folder: Path, front: list[TrialRecord], settings: ResolvedSettings, *, num_classes: int) -> None:
    """Write one recipe per trial of the front, and delete those of earlier fronts."""
    (folder / RECIPES).mkdir(exist_ok=True)
    answers = Run(folder, settings).answers
    images = None if answers is None else len(answers.labels)
    for record in front:
        recipe = make_recipe(record, settings, num_classes=num_classes, report_images=images)
        recipe.save(recipe_path(folder, record))
    for stale in set((folder / RECIPES).glob("*.yaml")) - {recipe_path(folder, record) for record in front}:
        stale.unlink()
