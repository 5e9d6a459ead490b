"""The export of a study's trials or of a training: which files, where to, in which order."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.export.choice import choose_trials
from ltmsearch.export.folder import CONFIG, RECIPE, ExportedFile, rebuild, write_recipe, write_weights
from ltmsearch.export.subnets import Subnet, is_study, study_subnets, trained_subnet
from ltmsearch.io.files import refuse_links_outward
from ltmsearch.models.checkpoints import WEIGHTS
from ltmsearch.programs import export_onnx, export_program, require_onnx
from ltmsearch.search.run import Run

_log = logging.getLogger(__name__)

EXPORT, ONNX, PROGRAM = "export", "model.onnx", "model.pt2"
FILES = (RECIPE, WEIGHTS, CONFIG, ONNX, PROGRAM)
"""All that an export may hold."""


def export_run(
    run: Path,
    *,
    trial: int | None = None,
    top: int | None = None,
    under_gflops: float | None = None,
    under_ms: float | None = None,
    checkpoint: Path | None = None,
    weights: bool = False,
    onnx: bool = False,
    program: bool = False,
    callbacks: Callbacks | None = None,
) -> list[ExportedFile]:
    """Write recipes, and on request weights and programs, each checked by opening it again.

    They go into `RUN/export/<trial>/` for a study and into `RUN/export/` for a training. A study's weights are the
    final shared ones of the subnet, with BatchNorm statistics of its own.

    Args:
        run: Run directory of a study, or folder of a training.
        trial: Number of a trial.
        top: How many of the front, best top-1 first; 1 unless another choice is made.
        under_gflops: Take the best of the front up to this cost.
        under_ms: Take the best of the front up to this latency, where the study had a latency budget.
        checkpoint: Weights of a training; None: the best that it kept.
        weights: Whether to write `model.safetensors` and `config.json`.
        onnx: Whether to write `model.onnx`.
        program: Whether to write `model.pt2`.
        callbacks: Receives a note on what is going on.

    Returns:
        The files, in the order in which they were written.

    Raises:
        InputError: If the folder is of neither kind, nothing fits, or a library is missing; nothing is written.
        ExportError: If a file does not hold what it should; that file is not left.
    """
    callbacks = callbacks or Callbacks()
    if onnx:
        require_onnx()
    refuse_links_outward(run)
    choice = {"trial": trial, "top": top, "under_gflops": under_gflops, "under_ms": under_ms}
    subnets = _subnets(run, choice, checkpoint, callbacks)
    kinds = [kind for kind, wanted in (("weights", weights), ("ONNX", onnx), ("torch.export", program)) if wanted]
    callbacks.phase("exporting", len(subnets) * (1 + len(kinds)))
    written: list[ExportedFile] = []
    begun = 0

    def begin(what: str, subnet: Subnet) -> None:
        nonlocal begun
        callbacks.advance(begun, what if subnet.trial is None else f"trial {subnet.trial}: {what}")
        begun += 1

    for subnet in subnets:
        folder = run / EXPORT / ("" if subnet.trial is None else str(subnet.trial))
        written += _export(subnet, folder, kinds, begin)
        older = sorted({path.name for path in folder.iterdir()} & set(FILES) - {file.file.name for file in written})
        if older:
            callbacks.note(f"{folder} holds from before, perhaps of other weights: {', '.join(older)}")
    callbacks.advance(begun)
    return written


def _export(subnet: Subnet, folder: Path, kinds: list[str], begin: Callable[[str, Subnet], None]) -> list[ExportedFile]:
    """One subnet into one folder."""
    begin("recipe", subnet)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        written = [write_recipe(subnet, folder)]
    if not kinds:
        return written
    trained = subnet.build()
    net, size = rebuild(subnet.recipe, trained), subnet.recipe.img_size
    ways: dict[str, Callable[[], list[ExportedFile]]] = {
        "weights": lambda: write_weights(subnet, net, trained, folder),
        "ONNX": lambda: [ExportedFile.of_program(export_onnx(net, folder / ONNX, img_size=size))],
        "torch.export": lambda: [ExportedFile.of_program(export_program(net, folder / PROGRAM, img_size=size))],
    }
    for kind in kinds:
        begin(kind, subnet)
        start = time.perf_counter()
        with _writing(folder):
            files = ways[kind]()
        for file in files:
            _log.info("%s: %d bytes, %s; %.1f s", file.file, file.bytes, file.check, time.perf_counter() - start)
        written += files
    return written


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error


def _subnets(run: Path, choice: dict[str, Any], checkpoint: Path | None, callbacks: Callbacks) -> list[Subnet]:
    if not is_study(run):
        for name, value in choice.items():
            if value is not None:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} chooses among the trials of a study, but {run} is of a training")
        return [trained_subnet(run, checkpoint, callbacks)]
    if checkpoint is not None:
        raise InputError(f"--checkpoint must come with the folder of a training, but {run} is of a study")
    study = Run.open(run)
    chosen = choose_trials(study.trials, **choice, cost=study.settings.axis.name)
    return study_subnets(study, chosen, callbacks)
