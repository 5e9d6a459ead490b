"""Choice of a study's trials, and the subnets of a study or a training with their weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import timm
from torch import nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.objective import CostAxis
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.errors import InputError
from ltmsearch.models.checkpoints import load_trained
from ltmsearch.models.weights import convert_state
from ltmsearch.reporting.recipes import make_recipe
from ltmsearch.search.checkpoint import WEIGHTS, load_checkpoint
from ltmsearch.search.evaluators import make_evaluator, open_supernet_and_data
from ltmsearch.search.img_sizes import proxy_side
from ltmsearch.search.records import TrialRecord, select_front
from ltmsearch.search.run import Run
from ltmsearch.search.settled import requested_runtime
from ltmsearch.training.options import BEST, RECIPE

CALIBRATION_IMAGES = 256
"""Training images, at least, for the BatchNorm statistics of an exported subnet. A search may use fewer, since that
lowers the scores of all its trials equally."""


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A subnet to export."""

    recipe: Recipe
    """Network and training recipe."""
    trial: int | None
    """Trial number; None for a training."""
    class_names: tuple[str, ...] | None
    """Class names in the order of the outputs; None if unknown."""
    source: Path
    """File of its weights."""
    trained: nn.Module | None
    """Network with its weights, on any device; None if only the recipe is wanted."""

    @cached_property
    def network(self) -> nn.Module:
        """The same network as timm builds it for the recipe's image size, on the CPU.

        A subnet extracted from a supernet accepts images of any size, so its graph differs, and its position embeddings
        are those of the study's largest size.
        """
        assert self.trained is not None
        net: nn.Module = timm.create_model(self.recipe.model, **self.recipe.model_kwargs())
        state = {name: value.detach().cpu() for name, value in self.trained.state_dict().items()}
        net.load_state_dict(convert_state(net, state))
        return net.eval()


def choose_trials(
    records: Sequence[TrialRecord],
    *,
    axis: CostAxis,
    trial: int | None = None,
    top: int | None = None,
    under_gflops: float | None = None,
    under_ms: float | None = None,
    recommended: int | None = None,
) -> list[TrialRecord]:
    """Choose one trial by number, the best `top` of the front by its measure, or the best of the front up to a cost.

    Without a criterion: the recommended trial, by number; None: the best of the front.

    Raises:
        InputError: If more than one criterion is given, or no trial meets it.
    """
    if sum(criterion is not None for criterion in (trial, top, under_gflops, under_ms)) > 1:
        raise InputError("--trial, --top, --under-gflops and --under-ms exclude each other")
    if under_ms is not None and "latency_ms" not in axis.costs:
        raise InputError("--under-ms needs a study with a latency budget (--budget-ms)")
    front = select_front(records, axis)
    if trial is not None:
        chosen = [record for record in records if record.trial == trial and record.state == "scored"]
        reason = f"trial {trial} has no score; the front has the trials {', '.join(str(r.trial) for r in front)}"
    elif under_gflops is not None:
        chosen = [record for record in front if record.gflops <= under_gflops][:1]
        reason = f"no trial of the front costs at most {under_gflops:g} GFLOPs"
        if front:
            reason += f"; the cheapest costs {min(r.gflops for r in front):.4f}"
    elif under_ms is not None:
        chosen = [record for record in front if _ms(record) <= under_ms][:1]
        reason = f"no trial of the front takes at most {under_ms:g} ms"
        if front:
            reason += f"; the fastest takes {min(map(_ms, front)):.2f}"
    else:
        chosen = front[: top or 1]
        if top is None and recommended is not None:
            chosen = [record for record in front if record.trial == recommended]
        reason = "the study has no front yet: no scored trial is within the budget"
    if not chosen:
        raise InputError(reason)
    return chosen


def _ms(record: TrialRecord) -> float:
    return record.cost("latency_ms") if record.latency_measured_ms is None else record.latency_measured_ms


def study_subnets(
    run: Run,
    records: Sequence[TrialRecord],
    callbacks: Callbacks,
    *,
    with_weights: bool,
    check: Callable[[Recipe, tuple[str, ...], Path], object] | None = None,
) -> Iterator[Subnet]:
    """Yield trials of a study with the final shared weights and BatchNorm statistics of their own, computed in fp32.

    `check` is called first, with the recipe of each, the class names and the file of the weights.

    Raises:
        InputError: If the shared weights are missing or damaged.
    """
    loaded = load_checkpoint(run.folder)
    if loaded is None:
        raise InputError(f"{run.folder} has no shared weights")
    weights, state = loaded
    names, answers = tuple(state.class_names), run.answers
    report_images = None if answers is None else len(answers.labels)
    make = partial(make_recipe, settings=run.settings, num_classes=len(names), report_images=report_images)
    if check is not None:
        for record in records:
            check(make(record), names, run.folder / WEIGHTS)
    evaluator = None
    if with_weights:
        callbacks.note("reading the study's data: each subnet gets BatchNorm statistics of its own")
        images = max(CALIBRATION_IMAGES, run.settings.calibration_images)
        settings = run.settings.model_copy(update={"calibration_images": images})
        supernet, data = open_supernet_and_data(settings, callbacks)
        sizes = {size for record in records if (size := record.schedule.img_size) is not None}
        sides = {size: proxy_side(size, own=settings.img_size, proxy=settings.proxy_img_size) for size in sizes}
        runtime = requested_runtime(settings.device, "fp32")
        evaluator = make_evaluator(supernet, data, settings, training=runtime, scoring=runtime, sides=sides)
        evaluator.supernet.check_weights(weights, run.folder / WEIGHTS)
        evaluator.supernet.load_state_dict(weights)
    for record in records:
        yield Subnet(
            recipe=make(record),
            trial=record.trial,
            class_names=names,
            source=run.folder / WEIGHTS,
            trained=None if evaluator is None else evaluator.recalibrated_subnet(record.schedule),
        )


def trained_subnet(run: Path, checkpoint: Path | None, callbacks: Callbacks) -> Subnet:
    """Return the subnet of a training.

    Raises:
        InputError: If recipe or weights are missing, damaged or do not match.
    """
    recipe = load_recipe(run / RECIPE)
    network = load_trained(recipe, run / BEST if checkpoint is None else checkpoint)
    if network.shared:
        raise InputError(
            f"--checkpoint must be the weights of one subnet, but {network.checkpoint} has the shared weights of a "
            "study; give `ltmsearch export` the run directory instead"
        )
    for note in network.notes:
        callbacks.note(f"{network.checkpoint}: {note}")
    return Subnet(
        recipe=recipe,
        trial=None,
        class_names=network.class_names,
        source=network.checkpoint,
        trained=network.model,
    )
