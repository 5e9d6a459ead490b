"""Costs that depend on the image: measured on fixed training images, with the shared weights of the time.

Operators that merge by threshold keep another number of tokens in every image, and other numbers once the weights have
changed. So the cost of a schedule is measured before each trial, with the weights that the trial starts from, and again
with the final weights.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.costs import CostModel, CostTable, ImageCosts
from ltmsearch.data.loading import ImageData, load_data
from ltmsearch.engine.image_costs import COST_BATCH, COST_IMAGES, measure_costs, whole_tokens
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.thresholds import thresholds_at
from ltmsearch.errors import InputError
from ltmsearch.models import get_adapter, input_config
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.grid import kept_share, tokens
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile
from ltmsearch.search.trial import Evaluator, load_parameters

PER_TRIAL = 3
"""Measurements that a trial is expected to need: proposals over the budget are measured too."""


@dataclass(kw_only=True)
class MeasuredCosts:
    """Costs of a study's schedules, as a table like `CostTable`; each is measured once per version of the weights."""

    costs_by_count: CostModel
    """The formulas."""
    space: SearchSpace
    evaluator: Evaluator
    images: tuple[Tensor, ...]
    """Batches of (B, channels, rows, columns) at `settings.img_size`."""
    bounds: CostTable
    """The least possible costs: every merge halves the tokens."""
    seconds: float = 0.0
    """Time that the last measurement took."""
    measured: ClassVar[bool] = True
    _version: int | None = None
    _weights: Mapping[str, Tensor] | None = None
    _known: dict[tuple[int, ...], ImageCosts] = field(default_factory=dict)

    @classmethod
    def on(
        cls, images: tuple[Tensor, ...], costs: CostModel, space: SearchSpace, evaluator: Evaluator
    ) -> "MeasuredCosts":
        """Costs that will be measured on these images."""
        bounds = costs.table(space.choices)
        return cls(costs_by_count=costs, space=space, evaluator=evaluator, images=images, bounds=bounds)

    def use(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Measure with this version of the shared weights from now on; until then with those that the network has."""
        if version != self._version:
            self._version, self._weights = version, weights
            self._known.clear()

    def of(self, indices: np.ndarray) -> ImageCosts:
        """The costs of the images under one (L,) schedule."""
        key = tuple(map(int, indices))
        if key not in self._known:
            start, evaluator = time.perf_counter(), self.evaluator
            supernet, schedule = evaluator.supernet, self.space.schedule(indices)
            if self._weights is not None:
                load_parameters(supernet, self._weights)
            with supernet.active(schedule):
                backbone, costs = evaluator.settings.backbone, self.costs_by_count
                kept = measure_costs(backbone, supernet.model, costs, schedule, self.images, evaluator.scoring)
            self._known[key] = kept
            self.seconds = time.perf_counter() - start
        return self._known[key]

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """(S,) costs of (S, L) choice indices in multiply-adds: the mean over images, or the quantile of the budget."""
        share = self.evaluator.settings.budget_quantile
        found = [self.of(one) for one in indices]
        return np.array([m.macs.mean() if share is None else m.quantile_macs(share) for m in found], dtype=float)

    def reachable(self) -> tuple[float, float]:
        """The least cost that is possible, and the cost of the plain network."""
        low, high = self.bounds.reachable()
        return float(low), float(high)

    def record(self, indices: np.ndarray) -> dict[str, Any]:
        """The costs of one (L,) schedule as JSON values: the fields of a `TrialRecord` that they fill."""
        measured, settings = self.of(indices), self.evaluator.settings
        schedule, layers = self.space.schedule(indices), self.costs_by_count.layers
        after = [float(whole_tokens(self.costs_by_count)), *measured.kept.mean(axis=0).tolist()]
        shares = {layer: after[i + 1] / after[i] for i, layer in enumerate(layers)}
        found: dict[str, Any] = {
            "gflops": measured.gflops,
            "gflops_sd": measured.gflops_sd,
            "kept_shares": {layer: round(shares[layer], 6) for layer in schedule.merging_layers},
        }
        if settings.budget_quantile is not None:
            found["gflops_quantile"] = measured.quantile(settings.budget_quantile)
        if settings.split_layer is not None:
            sent = after[1 + layers.index(settings.split_layer)] + self.costs_by_count.chains[0].prefix
            found["tokens_sent"] = round(sent, 4)
        return found

    def expected_seconds(self, trials: int) -> float:
        """Time of the measurements of a number of trials; one is taken, if there was none yet."""
        if not self.seconds:
            self.of(self.space.cheapest // 2)
        return PER_TRIAL * trials * self.seconds


def cost_images(settings: ResolvedSettings, data: ImageData, callbacks: Callbacks) -> tuple[Tensor, ...]:
    """The training images on which costs are measured, in batches, at `settings.img_size`."""
    if settings.img_size != settings.proxy_img_size:
        data = load_data(
            dataset=settings.dataset,
            data_dir=Path(settings.data_dir) if settings.data_dir else None,
            img_size=settings.img_size,
            **input_config(settings.backbone, settings.images),
            val_images=1,
            calibration_images=1,
            search_images=settings.search_images,  # not among those that are measured
            seed=settings.seed,
            memory_limit_bytes=0,  # a few of the images are used
            layout=settings.layout,
            callbacks=callbacks,
        )
    sample = data.training_sample(COST_IMAGES, seed=settings.seed)
    return tuple(images for images, _ in data.ordered_batches(sample, batch_size=COST_BATCH))


def measure_thresholds(
    file: SpaceFile, supernet: Supernet, costs: CostModel, images: tuple[Tensor, ...], runtime: Runtime
) -> dict[str, list[float]]:
    """Thresholds of the layers for which the file has none: those at which they keep its shares on average."""
    shares = {
        layer: sorted({kept_share(tokens(grid), ratio) for ratio in file.ratios_of(layer) if ratio < 1}, reverse=True)
        for layer, grid in costs.layer_grids.items()
        if file.thresholds_of(layer) is None
    }
    return thresholds_at(supernet, shares, images[0], runtime) if shares else {}


def refuse_unmeasurable(settings: ResolvedSettings, file: SpaceFile, supernet: Supernet, costs: CostModel) -> None:
    """Raise an `InputError` if thresholds or costs cannot be measured with this network.

    Thresholds that suit untrained weights suit none that are trained. And the supernet pads images to whole patches,
    where the network of a recipe may leave pixels out.
    """
    untrained = not (settings.pretrained or settings.checkpoint or settings.resume_from)
    if untrained and any(file.thresholds_of(layer) is None for layer in costs.layers):
        raise InputError(
            f"--operator {settings.operator} measures its thresholds with trained weights: give --pretrained, "
            "--checkpoint FILE or --resume-from RUN, or a --space with `thresholds`"
        )
    size = (settings.img_size, settings.img_size)
    padded = {
        layer.name: chain.grid
        for chain in get_adapter(settings.backbone).chains(supernet.model, size)
        for layer in chain.layers
    }
    if padded != costs.layer_grids:
        raise InputError(
            f"--img-size must be a multiple of the patch size for --operator {settings.operator}, but got "
            f"{settings.img_size}"
        )
