"""Training recipes of a study's trials."""

from pathlib import Path
from typing import Any

from ltmsearch.config.network import IMAGE_KEYS
from ltmsearch.config.recipe import Recipe, library_versions
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.search.records import TrialRecord

RECIPES = "recipes"
"""Folder in a run directory."""


def recipe_path(folder: Path, record: TrialRecord) -> Path:
    """File of a trial's recipe in a run directory."""
    return folder / RECIPES / f"{record.trial}.yaml"


def make_recipe(record: TrialRecord, settings: ResolvedSettings, *, num_classes: int) -> Recipe:
    """The recipe of one trial, with its provenance; `num_classes` are the data's."""
    score = record.score
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
    policy: dict[str, Any] = {"aa": None} if settings.in_chans == 4 else {}  # timm's policies know no RGBA
    return Recipe(
        model=f"ltm_{settings.backbone}",
        schedule=record.schedule,
        img_size=settings.img_size,
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


def write_recipes(folder: Path, front: list[TrialRecord], settings: ResolvedSettings, *, num_classes: int) -> None:
    """Write one recipe per trial of the front, and delete those of earlier fronts."""
    (folder / RECIPES).mkdir(exist_ok=True)
    for record in front:
        make_recipe(record, settings, num_classes=num_classes).save(recipe_path(folder, record))
    for stale in set((folder / RECIPES).glob("*.yaml")) - {recipe_path(folder, record) for record in front}:
        stale.unlink()
