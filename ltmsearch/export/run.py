"""Export of a study's trials or of a training: choice of subnets, files and folders."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import SETTINGS, ResolvedSettings
from ltmsearch.data.layout import DataLayout
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.image_costs import depends_on_images
from ltmsearch.errors import InputError
from ltmsearch.export.folder import CONFIG, RECIPE, write_recipe, write_weights
from ltmsearch.export.int8 import LabelledImages, export_int8
from ltmsearch.export.subnets import Subnet, choose_trials, study_subnets, trained_subnet
from ltmsearch.io.files import refuse_links_outward
from ltmsearch.merging import NO_PROGRAM
from ltmsearch.models.checkpoints import WEIGHTS
from ltmsearch.programs import ExportedFile, export_onnx, export_program, require_onnx
from ltmsearch.reporting.findings import findings_of
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.run import Run

_log = logging.getLogger(__name__)

EXPORT, ONNX, INT8, PROGRAM = "export", "model.onnx", "model.int8.onnx", "model.pt2"
FILES = {RECIPE, WEIGHTS, CONFIG, ONNX, INT8, PROGRAM}
"""Names of all files that an export may write."""


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
    int8: bool = False,
    dataset: str | None = None,
    data_dir: Path | None = None,
    layout: DataLayout | None = None,
    program: bool = False,
    callbacks: Callbacks | None = None,
) -> list[ExportedFile]:
    """Write recipes, and on request weights and programs, each checked by reading it back.

    Files go to `RUN/export/<trial>/` for a study and to `RUN/export/` for a training. The weights of a study are the
    final shared weights of the subnet, with BatchNorm statistics of its own.

    Args:
        run: Run directory of a study, or folder of a training.
        top: Export the best `top` trials of the front; without a criterion, the recommended trial is exported.
        under_gflops: Export the best trial of the front up to this cost.
        under_ms: Export the best trial of the front up to this latency, for studies with a latency budget.
        checkpoint: Weights of a training; None: its best.
        weights: Whether to write `model.safetensors` and `config.json`.
        int8: Whether to write the ONNX file in int8 too, which is compared with it on validation images.
        dataset, data_dir, layout: Data of these images, as for `validate_recipe`; None: those of the study.

    Returns:
        The files, in the order in which they were written.

    Raises:
        InputError: If the folder is neither, no trial meets the criterion, or a library is missing; nothing is written.
        ExportError: If a file fails its check; that file is not left.
    """
    callbacks = callbacks or Callbacks()
    if onnx:
        require_onnx()
    _refuse_images_without_int8(int8=int8, onnx=onnx, given=(dataset, data_dir, layout))
    refuse_links_outward(run)
    steps = [(RECIPE, True), (WEIGHTS, weights), (ONNX, onnx), (INT8, int8), (PROGRAM, program)]
    files = [file for file, wanted in steps if wanted]
    criteria: dict[str, Any] = {"trial": trial, "top": top, "under_gflops": under_gflops, "under_ms": under_ms}
    find = partial(_images, dataset, data_dir, layout) if int8 else None
    if not Run.exists(run):
        _refuse_unless_training(run, criteria)
        images = None if find is None else find()
        subnet = trained_subnet(run, checkpoint, callbacks)
        _refuse_programs(files, [subnet.recipe.schedule])
        return _write_subnet(subnet, run / EXPORT, files, images, callbacks)
    if checkpoint is not None:
        raise InputError(f"--checkpoint needs the folder of a training, but {run} is the run directory of a study")
    subnets, images = _of_study(Run.open(run), files, criteria, find, callbacks)
    return [file for subnet in subnets for file in _write_subnet(subnet, run / EXPORT, files, images, callbacks)]


def _of_study(
    study: Run,
    files: Sequence[str],
    criteria: Mapping[str, Any],
    find: Callable[[ResolvedSettings], LabelledImages] | None,
    callbacks: Callbacks,
) -> tuple[Iterable[Subnet], LabelledImages | None]:
    """The subnets that are chosen, and the images that compare int8, if wanted."""
    verdict, axis = findings_of(study).verdict, study.settings.axis
    best = None if verdict is None else verdict.recommended
    trials = choose_trials(study.trials, axis=axis, recommended=best, **criteria)
    _refuse_programs(files, [record.schedule for record in trials])
    images = None if find is None else find(study.settings)
    check = None if images is None else images.open
    return study_subnets(study, trials, callbacks, with_weights=len(files) > 1, check=check), images


def _images(
    dataset: str | None, data_dir: Path | None, layout: DataLayout | None, study: ResolvedSettings | None = None
) -> LabelledImages:
    """The data that are named; those of a study, if nothing else is."""
    if study is not None and dataset in (None, study.dataset):
        own = None if study.data_dir is None else Path(study.data_dir)
        if data_dir in (None, own):
            return LabelledImages(dataset=study.dataset, data_dir=own, layout=layout or study.layout)
    if dataset is None and data_dir is None:
        raise InputError(
            "--int8 compares its answers on labelled images, which the folder of a training does not name: use "
            "--data-dir DIR or --dataset NAME"
        )
    return LabelledImages(dataset=dataset or "folder", data_dir=data_dir, layout=layout or DataLayout())


def _refuse_images_without_int8(*, int8: bool, onnx: bool, given: Sequence[object]) -> None:
    if int8 and not onnx:
        raise InputError("--int8 quantises the ONNX file, so it needs --onnx")
    if not int8 and any(value is not None for value in given):
        raise InputError("options of images need --int8: other files are checked on random images")


def _refuse_programs(files: Sequence[str], schedules: Iterable[MergeSchedule]) -> None:
    """Raise an `InputError` if a program is wanted of a network whose shapes depend on the image."""
    if {ONNX, PROGRAM} & set(files) and any(depends_on_images(schedule) for schedule in schedules):
        raise InputError(NO_PROGRAM)


def _refuse_unless_training(run: Path, criteria: Mapping[str, object]) -> None:
    if not (run / RECIPE).is_file():
        found = f"has neither {SETTINGS} nor {RECIPE}" if run.is_dir() else "is not a folder"
        raise InputError(f"{run} must be the run directory of a study or the folder of a training, but {found}")
    for name, value in criteria.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} needs the run directory of a study, but {run} is the folder of a training")


def _write_subnet(
    subnet: Subnet, root: Path, files: Sequence[str], images: LabelledImages | None, callbacks: Callbacks
) -> list[ExportedFile]:
    trial = subnet.trial
    data = None
    if images is not None:
        data = images.open(subnet.recipe, subnet.class_names, subnet.source)
        for note in data.notes:
            callbacks.note(note)
    folder = root if trial is None else root / str(trial)
    callbacks.phase("exporting" if trial is None else f"exporting trial {trial}", len(files))
    written: list[ExportedFile] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for done, file in enumerate(files):
            callbacks.advance(done, file)
            start = time.perf_counter()
            for entry in _write(file, subnet, folder, data, callbacks):
                _log.info("%s: %d bytes, %s; %.1f s", entry.file, entry.bytes, entry.check, time.perf_counter() - start)
                written.append(entry)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
    callbacks.advance(len(files))
    older = sorted({path.name for path in folder.iterdir()} & FILES - {entry.file.name for entry in written})
    if older:
        callbacks.note(f"{folder} has files of an earlier export, perhaps with other weights: {', '.join(older)}")
    return written


def _write(file: str, subnet: Subnet, folder: Path, data: ImageData | None, callbacks: Callbacks) -> list[ExportedFile]:
    if file == RECIPE:
        return [write_recipe(subnet.recipe, folder)]
    if file == WEIGHTS:
        return write_weights(subnet, folder)
    if file == INT8:
        assert data is not None
        callbacks.phase("comparing int8 with float32", data.validation_size)
        return [export_int8(folder / ONNX, folder / INT8, data, callbacks.advance)]
    export = export_onnx if file == ONNX else export_program
    return [export(subnet.network, folder / file, img_size=subnet.recipe.img_size)]
