"""Taking trials out of a study: recipes, and the subnets' weights."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ltmsearch.checkpoint import load_checkpoint
from ltmsearch.errors import InputError
from ltmsearch.files import write_atomic
from ltmsearch.prepare import Workbench, prepare
from ltmsearch.records import TrialRecord, read_trials, select_front
from ltmsearch.results import TRIALS, make_recipe
from ltmsearch.settings import ResolvedSettings

EXPORT, RECIPE, WEIGHTS = "export", "recipe.yaml", "weights.safetensors"


def choose_trials(
    records: Sequence[TrialRecord],
    *,
    trial: int | None = None,
    top: int | None = None,
    under_gflops: float | None = None,
) -> list[TrialRecord]:
    """The trials that a user means: one by number, the best of the front, or the best of it up to a cost.

    Raises:
        InputError: If more than one way is given, or nothing fits.
    """
    if sum(choice is not None for choice in (trial, top, under_gflops)) > 1:
        raise InputError("--trial, --top and --under-gflops exclude each other")
    front = select_front(records)
    if trial is not None:
        chosen = [record for record in records if record.trial == trial and record.state == "scored"]
        rule = f"trial {trial} has no score; the front's are {', '.join(str(r.trial) for r in front)}"
    elif under_gflops is not None:
        chosen = [record for record in front if record.gflops <= under_gflops][:1]
        rule = f"no trial of the front costs up to {under_gflops:g} GFLOPs"
        if front:
            rule += f"; the cheapest costs {front[-1].gflops:.4f}"
    else:
        chosen, rule = front[: top or 1], "the study has no front yet: no scored trial is within the budget"
    if not chosen:
        raise InputError(rule)
    return chosen


def export_trials(
    run: Path,
    *,
    trial: int | None = None,
    top: int | None = None,
    under_gflops: float | None = None,
    weights: bool = False,
) -> list[Path]:
    """Write `RUN/export/<trial>/recipe.yaml`, with `weights` also `weights.safetensors`.

    The weights are the final shared ones of the subnet, with BatchNorm statistics of its own; they open with
    `timm.create_model(recipe.model, checkpoint_path=…, **recipe.model_kwargs())`.

    Args:
        run: Run directory.
        trial: Number of a trial.
        top: How many of the front, best top-1 first.
        under_gflops: Take the best of the front up to this cost.
        weights: Whether to write weights.

    Returns:
        The files.

    Raises:
        InputError: If the run directory is not one, or nothing fits.
    """
    settings = ResolvedSettings.load(run / "settings.yaml")
    chosen = choose_trials(read_trials(run / TRIALS), trial=trial, top=top, under_gflops=under_gflops)
    loaded = load_checkpoint(run)
    if loaded is None:
        raise InputError(f"{run} holds no shared weights")
    shared, state = loaded
    bench = _bench_with(settings, shared) if weights else None
    written = []
    for record in chosen:
        folder = run / EXPORT / str(record.trial)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = make_recipe(record, settings, num_classes=len(state.class_names))
        written.append(recipe.save(folder / RECIPE))
        if bench is not None:
            written.append(write_atomic(folder / WEIGHTS, _subnet_weights(bench, record)))
    return written


def _bench_with(settings: ResolvedSettings, shared: dict[str, Tensor]) -> Workbench:
    bench = prepare(settings)
    bench.evaluator.supernet.load_state_dict(shared)
    return bench


def _subnet_weights(bench: Workbench, record: TrialRecord) -> bytes:
    """The subnet's state dict as safetensors, BatchNorm recalibrated under its schedule."""
    subnet = bench.evaluator.recalibrated_subnet(record.schedule(bench.settings.operator))
    return save({name: value.detach().cpu().contiguous() for name, value in subnet.state_dict().items()})
