"""Contents of a study's pages in the dashboard: attributes, files, notes and plots."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import FrozenTrial, Trial
from optuna_dashboard import save_plotly_graph_object

from ltmsearch.costs import GIGA
from ltmsearch.io.csv_tables import csv_text
from ltmsearch.models import input_config
from ltmsearch.reporting.dashboard.note_storage import NoteStorage
from ltmsearch.reporting.dashboard.notes import (
    LayerTokens,
    layer_tokens,
    share_kept,
    study_note,
    trial_note,
    updated_note,
)
from ltmsearch.reporting.findings import find
from ltmsearch.reporting.layer_plot import layers_figure
from ltmsearch.reporting.merges import example_sheet, pixels_seen
from ltmsearch.reporting.merges.encoding import png
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.reporting.recipes import make_recipe
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.hooks import StudyHooks
from ltmsearch.search.optuna_records import FURTHER_COSTS, trial_costs
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.storage import ARTIFACTS
from ltmsearch.search.storage.optuna_private import study_id, trial_id
from ltmsearch.search.trial import ExampleMerges

SCHEDULE_COLUMNS = ("layer", "keep_ratio", "form", "tokens_before", "tokens_after", "windows")
SIDE, LAYERS = 112, 5
"""Of a picture of merges: pixels of an image's longer side, and most layers."""


@dataclass(frozen=True)
class DashboardHooks(StudyHooks):
    """Writes the notes, files and plots of one study. A repeated call replaces the output of the first."""

    context: StudyContext
    folder: Path
    """The run directory."""

    def trial_started(self, trial: Trial, schedule: MergeSchedule) -> None:
        """Set the attributes of a running trial that follow from its schedule."""
        costs, known = trial_costs(trial, self.context), trial.user_attrs
        layers = layer_tokens(self.context.costs_at(schedule), schedule, costs["kept_shares"])
        attributes: dict[str, Any] = {
            "kind": known.get("kind", "searched"),
            "gflops": costs["gflops"],
            "tokens_kept": round(share_kept(layers), 4),
            "tokens_last": layers[-1].after,
        }
        attributes |= {name: costs.get(name) for name in FURTHER_COSTS}
        for name, value in attributes.items():
            if value is not None and name not in known:
                trial.set_user_attr(name, value)

    def trial_scored(self, trial: Trial, record: TrialRecord, merges: ExampleMerges | None) -> None:
        """Upload the files of a running trial: schedule, recipe and a picture. Optuna accepts none later."""
        number, settings = record.trial, self.context.settings
        recipe = make_recipe(record, settings, num_classes=self.context.evaluator.data.num_classes)
        layers = layer_tokens(self.context.costs_at(record.schedule), record.schedule, record.kept_shares)
        files = {
            f"schedule-{number}.csv": _schedule_table(layers),
            f"recipe-{number}.yaml": recipe.to_yaml().encode(),
        }
        if merges is not None and any(merges.layers):
            files[f"merges-{number}.png"] = _merges_picture(merges, input_config(settings.backbone, settings.images))
        folder = self.folder / ARTIFACTS
        folder.mkdir(exist_ok=True)
        store = FileSystemArtifactStore(folder)
        known = {file.filename: file.artifact_id for file in get_all_artifact_meta(trial, storage=trial.storage)}
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in files.items():
                if name in known:  # from an interrupted trial, perhaps incomplete
                    store.write(known[name], io.BytesIO(content))
                    continue
                path = Path(scratch, name)
                path.write_bytes(content)
                upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial, record: TrialRecord) -> None:
        """Write the note of a trial that was just stored."""
        NoteStorage(study, empty=True).write(trial_id(trial), self._trial_note(record, on_front=False))

    def study_updated(self, study: optuna.Study, records: list[TrialRecord]) -> None:
        """Update all notes, and the plots if there is a front."""
        settings, present = self.context.settings, NoteStorage(study)
        axis, run = settings.axis, Run(self.folder, settings)
        findings = find(records, axis, run.answers, settings.tolerance, run.curves)
        ids = {trial.number: trial_id(trial) for trial in study.get_trials(deepcopy=False)}
        notes: dict[int | None, str] = {
            ids[record.trial]: self._trial_note(record, on_front=record in findings.front) for record in records
        }
        link = f"/dashboard/studies/{study_id(study)}/trials?numbers={{}}".format
        notes[None] = study_note(settings, records, findings, base_gflops=self._base_gflops, link=link)
        for owner, text in notes.items():
            if (new := updated_note(text, present.read(owner))) is not None:
                present.write(owner, new)
        if findings.front:
            draw = partial(front_figure, records, verdict=findings.verdict, curves=findings.curves, place="dashboard")
            plots = {
                "front": draw(title="Front with the final weights", axis=axis),
                "layers": layers_figure(findings, title="Layers of the front", place="dashboard"),
            }
            if axis.second is not None:
                plots["front-tokens"] = draw(title="Front by tokens sent", axis=axis.swapped)
            for name, plot in plots.items():
                save_plotly_graph_object(study, plot, graph_object_id=name)

    @property
    def _base_gflops(self) -> float:
        return self.context.costs.base / GIGA

    def _trial_note(self, record: TrialRecord, *, on_front: bool) -> str:
        layers = layer_tokens(self.context.costs_at(record.schedule), record.schedule, record.kept_shares)
        axis = self.context.settings.axis
        return trial_note(record, layers, axis, base_gflops=self._base_gflops, on_front=on_front)


def _schedule_table(layers: Sequence[LayerTokens]) -> bytes:
    rows = [(e.layer, e.keep_ratio, e.form or "plain", e.before, e.after, e.windows) for e in layers]
    return csv_text(SCHEDULE_COLUMNS, rows).encode()


def _merges_picture(merges: ExampleMerges, inputs: Mapping[str, Any]) -> bytes:
    """A PNG of about ten kilobytes: a row per image, a column per merging layer."""
    size = merges.images.shape[-1]
    pixels = pixels_seen(merges.images, mean=inputs["mean"], std=inputs["std"])
    sheet = example_sheet(pixels, merges.layers, title=f"merged tokens at {size} px", side=SIDE, most=LAYERS)
    return png(sheet, few_colours=True)
